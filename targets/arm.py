"""The arm-edge backend: the tile kernels for NEON, cross-compiled, and run on a board."""

import contextlib
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.measurement import Samples
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Feeds, Report, silent
from tilewright.target import Target
from tilewright.targets.board.held import INDICES, Emulation, HeldBoard, hold
from tilewright.targets.board.make import board_programs
from tilewright.targets.board.place import QEMU, parse_place
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.link import Toolchain
from tilewright.targets.lower.lower_graph import lowering_of
from tilewright.targets.lower.program import Pool, Program, segments
from tilewright.targets.lower.sites import estimated
from tilewright.targets.program_files import (
    PROGRAM,
    Lowered,
    Storage,
    read_json,
    write_files,
)
from tilewright.timings import Tuning

MACHINE = "machine.json"  # of an artifact: what it was compiled for
_LEAST_RUNS, _SECONDS = 20, 3.0  # of a timing


class ArmBackend:
    """Builds shared libraries for 64-bit Arm and runs them on a board or in an emulator."""

    name: ClassVar[str] = "arm-edge"

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Lower, compile and write `lib.so`, the packed weights and `program.json`.

        `graphs` are one model at several shapes of its inputs. Raises CannotLower where a node
        has no kernel: a board has nothing else to run it.
        """
        isa = isa_of(target)
        report("lowering")
        pool = Pool()
        lowered = []
        for graph in map(in_floats, graphs):
            program = lowering_of(graph, target, isa, report)(estimated)
            _check_islands(program, target)
            lowered.append(Lowered(program, segments(program), graph, pool.take(program)))
        storage = Storage(Toolchain(isa.triple).link_shared, INDICES, np.ndarray.tobytes)
        written = write_files(lowered, pool, target, isa, storage, folder, report)
        machine = {"triple": isa.triple, **target.settings["emulated"]}
        (folder / MACHINE).write_text(json.dumps(machine) + "\n", encoding="utf-8")
        first = lowered[0].program
        return Build(
            layers=tuple(first.layers),
            islands=(),
            stored_bytes=written.stored_bytes,
            details={
                "isa": isa.name,
                "calls": str(len(first.steps)),
                "arena_bytes": str(written.arena_bytes),
            },
        )

    def find_device(self, asked: str | None) -> str:
        """Return the place that --device names, or the emulator where it is installed."""
        return str(parse_place(asked))

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> "BoardProgram":
        """Return a function from feeds to outputs that runs on a board, which it holds."""
        return BoardProgram(folder, threads, self.find_device(device))

    def time(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Samples | None:
        """Time inferences on a board, by its own clock; the emulator has none."""
        if device == QEMU:
            return None
        program = BoardProgram(folder, threads, device)
        program(feeds)
        return program.time()


class BoardProgram:
    """An artifact at work on a board, which is held until this object is gone."""

    def __init__(self, folder: Path, threads: int | None, device: str) -> None:
        """Upload the artifact. Raises BoardFailed where there is no board."""
        machine = read_json(folder / MACHINE)
        described = read_json(folder / PROGRAM)["programs"][0]
        self._inputs = described["inputs"]
        stack = contextlib.ExitStack()
        programs = board_programs(machine["triple"], silent)
        emulation = Emulation(machine["qemu_cpu"], f"/usr/{machine['triple']}")
        self.board: HeldBoard = stack.enter_context(
            hold(parse_place(device), programs, emulation)
        )
        weakref.finalize(self, stack.close)
        self.number = self.board.open(folder, list(described["outputs"]), threads or 0)

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        if unknown := set(feeds) - set(self._inputs):
            raise UnusableInput(
                f"There is no input {sorted(unknown)}; "
                f"this artifact takes {sorted(self._inputs)}."
            )
        return self.board.run(self.number, {k: np.asarray(v) for k, v in feeds.items()})

    def time(self) -> Samples:
        """Time runs on the latest inputs, for some seconds."""
        once = max(self.board.time(self.number, 3))
        repeats = max(_LEAST_RUNS, min(1000, int(_SECONDS * 1e9 / max(once, 1))))
        return Samples(self.board.time(self.number, repeats))


def isa_of(target: Target) -> Isa:
    """Return the instruction set that a target's file describes. Raises UnusableInput."""
    table: Mapping[str, Any] = target.settings.get("isa", {})
    try:
        return Isa(
            name=table["name"],
            mcpu=table["mcpu"],
            lanes=table["lanes_fp32"],
            registers=table["registers"],
            dot=table["dot"],
            features=tuple(table["features"]),
            needs=tuple(table["needs"]),
            triple=table["triple"],
        )
    except (KeyError, TypeError) as error:
        raise UnusableInput(
            f"Target {target.name}: the table [isa] lacks {error}. "
            "Compare with targets/arm-edge.toml."
        ) from error


def _check_islands(program: Program, target: Target) -> None:
    if program.islands:
        named = "; ".join(f"{note.node}: {note.reason}" for note in program.islands[:5])
        more = f" (and {len(program.islands) - 5} more)" if len(program.islands) > 5 else ""
        raise CannotLower(
            f"Target {target.name} has no kernel for {named}{more}. A board has no other "
            "engine to run them: take the nodes out of the model, or compile for cpu."
        )
