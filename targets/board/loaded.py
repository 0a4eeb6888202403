"""An artifact at work on a board."""

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tilewright.artifact import read_json, write_json
from tilewright.errors import UnusableInput
from tilewright.measurement import Samples
from tilewright.protocol import Feeds, silent
from tilewright.targets.board.held import Emulation, HeldBoard, board_of_thread
from tilewright.targets.board.make import board_programs
from tilewright.targets.board.place import Place
from tilewright.targets.program_files import PROGRAM

MACHINE = "machine.json"  # of an artifact: what it was compiled for
_MOST_RUNS, _SECONDS = 1000, 0.5  # of a round


class LoadedOnBoard:
    """An artifact on a board: a function from feeds to outputs.

    All that one thread loads at one place shares a board; the last of them lets it go.
    """

    def __init__(self, folder: Path, threads: int | None, place: Place) -> None:
        """Upload the artifact. Raises DeviceFailed where there is no board."""
        described = read_json(folder / PROGRAM)["programs"][0]
        self._inputs: Mapping[str, object] = described["inputs"]
        self._board: HeldBoard = board_of_thread(place, *tools_for(folder))
        self._number = self._board.open(folder, list(described["outputs"]), threads or 0)
        weakref.finalize(self, self._board.close, self._number)

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        if unknown := set(feeds) - set(self._inputs):
            raise UnusableInput(
                f"There is no input {sorted(unknown)}; "
                f"this artifact takes {sorted(self._inputs)}."
            )
        values = {name: np.asarray(value) for name, value in feeds.items()}
        return self._board.run(self._number, values)

    def time(self) -> Samples:
        """Time runs on the latest inputs for half a second, or one, by the board's clock."""
        taken = self._board.time(self._number, 1)
        runs = min(_MOST_RUNS, int(_SECONDS * 1e9 / max(taken[0], 1)))
        if runs:
            # The first has warmed caches up, which another artifact may have filled.
            taken = self._board.time(self._number, runs)
        threads = self._board.threads(self._number)
        told = f"{threads} thread" if threads == 1 else f"{threads} threads"
        return Samples(taken, device=f"{self._board.name}, {told}")

    def time_parts(self) -> list[int]:
        """Return nanoseconds of each part, in one run on the latest inputs."""
        return self._board.time_parts(self._number)


def write_machine(
    folder: Path, triple: str, qemu_cpu: str, kernels: Mapping[str, Sequence[str]]
) -> None:
    """Note in an artifact what it was compiled for, and what nodes its kernels run."""
    described = {"triple": triple, "qemu_cpu": qemu_cpu, "kernels": kernels}
    write_json(folder / MACHINE, described)


def tools_for(folder: Path) -> tuple[Path, Emulation]:
    """Return the programs for an artifact's machine, and what emulates it."""
    machine = read_json(folder / MACHINE)
    triple = machine["triple"]
    return board_programs(triple, silent), Emulation(machine["qemu_cpu"], f"/usr/{triple}")
