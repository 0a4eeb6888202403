"""The gpu backend: kernels through TVM for CUDA, and through OpenCL to check numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tilewright.artifact import read_json
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.measurement import Samples
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Estimate, Feeds, Report, Steps
from tilewright.target import Target
from tilewright.targets.cuda import driver, opencl
from tilewright.targets.cuda.executor import PROGRAM, GpuProgram, Machine
from tilewright.timings import Tuning

_MISSING: dict[str, Callable[[], str | None]] = {
    driver.NAME: driver.cuda_missing,
    opencl.NAME: opencl.opencl_missing,
}
_MACHINES: dict[str, Callable[..., Machine]] = {
    driver.NAME: driver.CudaMachine,
    opencl.NAME: opencl.OpenClMachine,
}


class GpuBackend:
    """Builds machine code for NVIDIA GPUs, and the same kernels for OpenCL."""

    name: ClassVar[str] = "gpu"

    def find_device(self, asked: str | None) -> str:
        """Return "cuda" where there is a GPU, else "opencl", which checks numbers only."""
        wanted = list(_MISSING) if asked is None else [asked]
        if unknown := set(wanted) - set(_MISSING):
            raise UnusableInput(
                f"--device {unknown.pop()}: artifacts for gpu run on {' or '.join(_MISSING)}."
            )
        missing = {name: _MISSING[name]() for name in wanted}
        for name, lacks in missing.items():
            if lacks is None:
                return name
        told = "; ".join(f"{name} lacks {lacks}" for name, lacks in missing.items())
        raise UnusableInput(f"There is no device to run artifacts for gpu on: {told}.")

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Write machine code, OpenCL source, weights, and the launches of an inference.

        Raises CannotLower where TVM has no kernel for a node, and UnusableInput for targets
        whose .toml describes no GPU, or one that the compiler does not know, and for `tuning`.
        """
        from tilewright.targets.cuda.artifact import write_artifact
        from tilewright.targets.cuda.device import read_device
        from tilewright.targets.cuda.layers import sparse_tile

        if tuning is not None:
            raise UnusableInput(
                f"--tune: kernels for {target.name} are chosen by a model of the device, and "
                "not measured. Leave the option out."
            )
        device = read_device(target)
        written = write_artifact(
            [in_floats(graph) for graph in graphs], device, sparse_tile(target), folder, report
        )
        return Build(
            layers=tuple(written.layers),
            islands=(),
            stored_bytes=written.stored_bytes,
            details=written.details,
        )

    def estimate(self, folder: Path, target: Target, report: Report) -> Estimate:
        """Return the cycles of all launches, by the roofline that kernels were chosen by."""
        told = read_json(folder / PROGRAM)["estimated_cycles"]
        return Estimate(told["value"], told["model"])

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> GpuProgram:
        """Return a function from feeds to outputs; calls from several threads take turns."""
        return GpuProgram(folder, _MACHINES[self.find_device(device)])

    def time(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Samples | None:
        """Time inferences between events of the GPU; None for OpenCL, which is not the GPU."""
        if device != driver.NAME:
            return None
        return driver.time_inferences(GpuProgram(folder, driver.CudaMachine), feeds)

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str,
    ) -> Steps:
        """Raise UnusableInput: kernels are not timed one by one."""
        raise UnusableInput(
            f"search needs a device that times kernels one by one, and {target.name} is none. "
            "Search for cpu, and compile for gpu with the plan."
        )

    def boards(self, device: str) -> int:
        """Return 1: work is not shared out among GPUs."""
        return 1
