"""A built artifact at work: its launches on whatever machine runs them.

kernels.cubin     machine code for one architecture (or kernels.cu, source, where none was made)
kernels.cl        the same kernels for OpenCL, to check numbers without a GPU
kernels.json      what each kernel uses, and what it is estimated to take
weights.bin       constants, aligned
program.json      where everything lies in memory, and what is launched in which order
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tilewright.artifact import read_json
from tilewright.errors import UnusableInput
from tilewright.protocol import Feeds
from tilewright.targets.picked import check_picked

ARENA, WEIGHTS = "arena", "weights"  # the two memories that tensors lie in
ALIGNMENT = 256  # bytes that each tensor starts at a multiple of
PROGRAM, WEIGHTS_FILE, CUBIN = "program.json", "weights.bin", "kernels.cubin"


class Machine(Protocol):
    """A device that holds an artifact's weights and arena."""

    def bind(self, launch: Mapping[str, Any]) -> Callable[[], object]:
        """Return what starts a launch behind those that were started before."""
        ...

    def write(self, base: str, at: int, values: np.ndarray) -> None:
        """Copy an array to the device."""
        ...

    def read(self, base: str, at: int, values: np.ndarray) -> None:
        """Fill an array from the device, once all launches are over."""
        ...


class GpuProgram:
    """A loaded artifact; calls from several threads take turns, as the arena is one."""

    def __init__(
        self, folder: Path, machine: Callable[[Path, np.ndarray, int], Machine]
    ) -> None:
        content = read_json(folder / PROGRAM)
        weights = np.fromfile(folder / WEIGHTS_FILE, np.uint8)
        if not weights.size:
            weights = np.zeros(1, np.uint8)  # no device has memory without bytes
        self.machine = machine(folder, weights, content["arena_bytes"])
        self._programs = content["programs"]
        self._launches = [
            [self.machine.bind(launch) for launch in program["launches"]]
            for program in self._programs
        ]
        self._turn = threading.Lock()

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        which = self.fitting(feeds)
        with self._turn:
            self.take(which, feeds)
            self.launch(which)
            return self.results(which)

    def fitting(self, feeds: Feeds) -> int:
        """Return the number of the program whose inputs these are. Raises UnusableInput."""
        first = self._programs[0]["inputs"]
        if not isinstance(feeds, Mapping) or set(feeds) != set(first):
            found = sorted(feeds) if isinstance(feeds, Mapping) else type(feeds).__name__
            raise UnusableInput(
                f"An artifact takes arrays by input name, and found {found}. "
                f"Give it exactly {sorted(first)}."
            )
        for which, program in enumerate(self._programs):
            if all(_fits(feeds[name], t) for name, t in program["inputs"].items()):
                return which
        wanted = {n: (tuple(t["shape"]), t["dtype"]) for n, t in first.items()}
        told = {n: (np.shape(v), str(getattr(v, "dtype", "?"))) for n, v in feeds.items()}
        raise UnusableInput(f"The artifact takes {wanted}, and found {told}.")

    def take(self, which: int, feeds: Feeds) -> None:
        """Copy the inputs of a program to the device.

        Raises UnusableInput where one picks an entry that a table has not: kernels do not look.
        """
        program = self._programs[which]
        for name in program["inputs"]:
            check_picked(name, np.asarray(feeds[name]), program["entries"])
        for name, tensor in program["inputs"].items():
            base, at, _ = tensor["at"]
            self.machine.write(base, at, np.ascontiguousarray(feeds[name]))

    def launch(self, which: int) -> None:
        """Start all launches of a program."""
        for start in self._launches[which]:
            start()

    def results(self, which: int) -> dict[str, np.ndarray]:
        """Copy the outputs of a program from the device, once its launches are over."""
        found = {}
        for name, tensor in self._programs[which]["outputs"].items():
            values = np.empty(tensor["shape"], tensor["dtype"])
            base, at, _ = tensor["at"]
            self.machine.read(base, at, values)
            found[name] = values
        return found


def _fits(values: np.ndarray, tensor: Mapping[str, Any]) -> bool:
    return np.shape(values) == tuple(tensor["shape"]) and (
        str(getattr(values, "dtype", "")) == tensor["dtype"]
    )
