"""The edge-npu backend: integer regions through Vela, the rest for a CPU beside the device."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from tilewright.artifact import read_json, write_json
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph, static_shape
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Estimate, Executable, Feeds, Report, Steps
from tilewright.target import Target
from tilewright.timings import Tuning

REFERENCE = "tosa-reference"
_PACKAGES = ("ethosu", "tosa_serializer", "tosa_reference_model")
# Cycles and traffic of each layer, as Vela estimates them.
ESTIMATES = "vela.json"


class NpuBackend:
    """Builds for Arm Ethos-U by TOSA and Vela; runs regions in the TOSA reference model."""

    name: ClassVar[str] = "edge-npu"
    # Half a step of 8 bits: sums and tables of integers are rounded on their way.
    slack: ClassVar[float] = 0.5 / 255

    def find_device(self, asked: str | None) -> str:
        """Return "tosa-reference", the only one. Raises UnusableInput for any other."""
        if asked not in (None, REFERENCE):
            raise UnusableInput(
                f"--device {asked}: artifacts for edge-npu run in Arm's reference model, "
                f'"{REFERENCE}", bit for bit as TOSA says; a board is not reached from here. '
                "Leave the option out."
            )
        return REFERENCE

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        """Raise UnusableInput without the extra [npu], for --tune, for an unknown device."""
        check_installed()
        if tuning is not None:
            raise UnusableInput(
                "--tune measures on the device, and edge-npu has none here. Leave it out: "
                "Vela's estimates decide."
            )
        from tilewright.targets.npu.vela import Device

        Device.of(target.settings, target.name)

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Write each region as TOSA, as Vela's .tflite and as commands, and the rest as ONNX.

        `graphs` are one model at several shapes of its inputs; what is told is of the first.
        Raises CannotLower where nothing is left for the device, or Vela refuses a region, and
        UnusableInput where the extra [npu] is missing or a measurement is asked for.
        """
        check_installed()
        from tilewright.targets.npu.program import FORMAT, PROGRAM
        from tilewright.targets.npu.vela import Device
        from tilewright.targets.npu.write import write_program

        device = Device.of(target.settings, target.name)
        written = []
        for index, graph in enumerate(map(in_floats, graphs)):
            _check_static(graph, target)
            prefix = f"size{index}_" if index else ""
            written.append(write_program(graph, device, folder, prefix, report))
        programs = [size.described for size in written]
        write_json(folder / PROGRAM, {"format": FORMAT, "programs": programs})
        first = written[0]
        estimates = {
            "model": device.model,
            # Of one inference at the first size; what the CPU does beside it is not in it.
            "cycles": sum(region["totals"]["cycles"] for region in first.estimates),
            "regions": [region for size in written for region in size.estimates],
        }
        write_json(folder / ESTIMATES, estimates)
        inside, all_macs = first.macs
        return Build(
            layers=first.layers,
            islands=first.islands,
            stored_bytes=sum(_kept_bytes(folder, program) for program in programs),
            details={
                "regions": str(len(first.estimates)),
                "macs_on_npu": f"{inside / all_macs:.1%}" if all_macs else "none",
                "convolutions_in_2_4_mode": str(first.sparse),
            },
        )

    def estimate(self, folder: Path, target: Target, report: Report) -> Estimate:
        """Return the cycles of all regions, as Vela estimated them while it compiled."""
        content = read_json(folder / ESTIMATES)
        return Estimate(float(content["cycles"]), content["model"])

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> Executable:
        """Return a function from feeds to outputs; calls from several threads take turns."""
        self.find_device(device)
        check_installed()
        from tilewright.targets.npu.program import NpuProgram

        return NpuProgram(folder, threads)

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> None:
        """Return None: the reference model is not the device."""

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str,
    ) -> Steps:
        """Raise UnusableInput: there is no device here whose steps could be timed."""
        raise UnusableInput(
            f"Target {target.name} is not timed: its artifacts run in TOSA's reference model. "
            "Search on a target that is, or compile with --sparsity and compare the estimates."
        )

    def boards(self, device: str) -> int:
        """Return 1: work is not shared out among reference models."""
        return 1


def _check_static(graph: Graph, target: Target) -> None:
    for tensor in graph.inputs:
        if static_shape(tensor) is None:
            raise CannotLower(
                f"Target {target.name} needs the shape of every input, and "
                f'"{tensor.name}" is {tensor.shape}. Fix its open dimensions with --dim NAME=N.'
            )


def _kept_bytes(folder: Path, program: Mapping[str, Any]) -> int:
    """Return the size of what a device keeps: commands with weights, and models for its CPU."""
    names = [step.get("commands", step.get("cpu")) for step in program["steps"]]
    return sum((folder / name).stat().st_size for name in names)


def check_installed() -> None:
    """Raise UnusableInput where a package of the extra [npu] is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UnusableInput(
            f"Target edge-npu needs {', '.join(missing)}, which is not installed. Install the "
            "extra [npu], in an environment of its own, for it holds numpy and onnx back: "
            "python -m venv .venv-npu && .venv-npu/bin/pip install '.[zoo,npu]'."
        )
