"""The gpu backend: kernels through TVM for CUDA, and through OpenCL to check numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tilewright.artifact import read_json
from tilewright.compare import FLOAT32_SLACK
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.measurement import Timer
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Estimate, Feeds, Report, Steps
from tilewright.target import Target
from tilewright.targets.cuda import driver, opencl
from tilewright.targets.cuda.compile import NO_COMPILER, has_compiler
from tilewright.targets.cuda.executor import CUBIN, PROGRAM, GpuProgram, Machine
from tilewright.timings import Tuning

if TYPE_CHECKING:
    from tilewright.targets.cuda.device import Device

_MACHINES: dict[str, Callable[..., Machine]] = {
    driver.NAME: driver.CudaMachine,
    opencl.NAME: opencl.OpenClMachine,
}


class GpuBackend:
    """Builds machine code for NVIDIA GPUs, and the same kernels for OpenCL."""

    name: ClassVar[str] = "gpu"
    slack: ClassVar[float] = FLOAT32_SLACK

    def find_device(self, asked: str | None) -> str:
        """Return "cuda" where there is a GPU and a compiler for it, else "opencl".

        The latter checks numbers only.
        """
        return _find(asked, _missing_to_build)

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        """Raise UnusableInput for what cannot be built, or not run on the GPU that is there."""
        described = _checked(target, tuning)
        if device != driver.NAME:
            return
        gpu = driver.find_gpu()
        if not gpu.runs(described.arch):
            major, minor = gpu.capability
            raise UnusableInput(
                f"Target {target.name} is for {described.arch}, and this machine's GPU "
                f"({gpu.name}) has compute capability {major}.{minor}, which does not run that "
                "code. Choose a target whose .toml has its arch, or check the numbers with "
                "--device opencl to compile for another machine."
            )

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
        from tilewright.targets.cuda.layers import sparse_tile

        device = _checked(target, tuning)
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
        """Return a function from feeds to outputs; calls from several threads take turns.

        What holds no machine code runs through OpenCL, unless another device is asked for.
        """
        if device is None and not (folder / CUBIN).is_file():
            device = opencl.NAME
        return GpuProgram(folder, _MACHINES[_find(device, driver.cuda_missing)])

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Timer | None:
        """Return what times inferences between events of the GPU; None for OpenCL."""
        if device != driver.NAME:
            return None
        return driver.timer_of(GpuProgram(folder, driver.CudaMachine), feeds)

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


def _find(asked: str | None, cuda_missing: Callable[[], str | None]) -> str:
    """Return the device that is asked for, or the first that lacks nothing."""
    known = {driver.NAME: cuda_missing, opencl.NAME: opencl.opencl_missing}
    wanted = list(known) if asked is None else [asked]
    if unknown := set(wanted) - set(known):
        raise UnusableInput(
            f"--device {unknown.pop()}: artifacts for gpu run on {' or '.join(known)}."
        )
    told = []
    for name in wanted:
        lacks = known[name]()
        if lacks is None:
            return name
        told.append(f"{name} lacks {lacks}")
    raise UnusableInput(f"There is no device to run artifacts for gpu on: {'; '.join(told)}.")


def _missing_to_build() -> str | None:
    """Say what is missing to build what a GPU runs, and to run it; None where nothing is."""
    if missing := driver.cuda_missing():
        return missing
    return None if has_compiler() else f"machine code, as there is {NO_COMPILER}"


def _checked(target: Target, tuning: Tuning | None) -> "Device":
    from tilewright.targets.cuda.device import read_device

    if tuning is not None:
        raise UnusableInput(
            f"--tune: kernels for {target.name} are chosen by a model of the device, and "
            "not measured. Leave the option out."
        )
    return read_device(target)
