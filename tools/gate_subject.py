"""Subject of the gate: an artifact, its exact figures, and whether it can be timed here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from tilewright import artifact
from tilewright.protocol import HOST, Report
from tilewright.tools.evaluate_task import evaluate_task
from tilewright.tools.find_target import find_backend
from tilewright.tools.give_device import give_device

# What a backend tells in its details is a count, of which less is better, under these names
# or where the name ends in "_bytes".
_COUNTS = ("calls", "kernels")


@dataclass(frozen=True)
class Subject:
    """An artifact whose files are whole, and where it runs.

    `asked` is another device than it was compiled for, where one is asked for.
    """

    folder: Path
    manifest: Mapping[str, Any]
    asked: str | None = None

    @property
    def name(self) -> str:
        """What baselines call it: its folder's name."""
        return self.folder.absolute().name

    @property
    def device(self) -> str:
        """Where it runs; artifacts of older versions do not say, and run here."""
        return self.asked or str(self.manifest.get("device", HOST))

    @property
    def identity(self) -> dict[str, str]:
        """What has to be the same for figures to be comparable."""
        identity = {key: str(self.manifest[key]) for key in ("model", "target", "precision")}
        isa = self.manifest["details"].get("isa")
        return identity if isa is None else {**identity, "isa": str(isa)}

    @property
    def interface(self) -> tuple[str, ...]:
        """What makes it a form of one model for one device: the target, inputs and outputs."""
        graph = onnx.load(self.folder / artifact.MODEL, load_external_data=False).graph
        constants = {each.name for each in graph.initializer}
        inputs = sorted(each.name for each in graph.input if each.name not in constants)
        outputs = sorted(each.name for each in graph.output)
        target = str(self.manifest["target"])
        return target, f"from {', '.join(inputs)} to {', '.join(outputs)}"

    @property
    def counts(self) -> dict[str, float]:
        """Figures that hold no noise, and of which less is better."""
        counts: dict[str, float] = {
            "stored_bytes": self.manifest["bytes"]["stored"],
            "nonzero_parameters": self.manifest["parameters"]["active"],
        }
        for name, value in self.manifest["details"].items():
            if (name in _COUNTS or name.endswith("_bytes")) and value.isdecimal():
                counts[name] = int(value)
        if estimate := self.manifest.get("estimated_cycles"):
            # By its model, as another one counts other cycles.
            counts[f"estimated_cycles ({estimate['model']})"] = estimate["value"]
        return counts

    @property
    def is_emulated(self) -> bool:
        """Say whether something stands in for the device, so that a task would take hours."""
        return self.asked is None and self.manifest.get("latency", {}) is None

    def on(self, device: str | None) -> "Subject":
        """Return the artifact on another device. Raises UnusableInput where that is none."""
        backend = find_backend(self.manifest["backend"])
        return replace(self, asked=backend.find_device(device))

    def score(self, task: str, threads: int | None, report: Report) -> float:
        """Return the artifact's score on a task of the zoo.

        Where it is emulated it is that of its model.onnx, which compile found it to agree with.
        """
        model = self.folder / artifact.MODEL if self.is_emulated else self.folder
        device = None if self.is_emulated else self.device
        found = evaluate_task(str(model), task, threads=threads, device=device, report=report)
        return float(found["value"])


def read_subjects(folders: Sequence[Path], device: str | None) -> list[Subject]:
    """Read artifacts, to be run on `device` if one is asked for.

    Raises UnusableInput and DamagedArtifact as artifact.read() does, and UnusableInput where
    none of them runs on that device, or it is none.
    """
    subjects = [Subject(folder, artifact.read(folder)) for folder in folders]
    given = give_device({str(each.folder): each.manifest for each in subjects}, device)
    return [each.on(device) if str(each.folder) in given else each for each in subjects]
