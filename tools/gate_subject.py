"""Subject of the gate: an artifact, its exact figures, and whether it can be timed here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright import artifact
from tilewright.protocol import HOST, Report
from tilewright.tools.evaluate_task import evaluate_task

# What a backend tells in its details is a count, of which less is better, under these names
# or where the name ends in "_bytes".
_COUNTS = ("calls", "kernels")


@dataclass(frozen=True)
class Subject:
    """An artifact whose files are whole, and where it runs."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What baselines call it: its folder's name."""
        return self.folder.absolute().name

    @property
    def device(self) -> str:
        """Where it runs; artifacts of older versions do not say, and run here."""
        return str(self.manifest.get("device", HOST))

    @property
    def identity(self) -> dict[str, str]:
        """What has to be the same for figures to be comparable."""
        identity = {key: str(self.manifest[key]) for key in ("model", "target", "precision")}
        isa = self.manifest["details"].get("isa")
        return identity if isa is None else {**identity, "isa": str(isa)}

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
            counts["estimated_cycles"] = estimate["value"]
        return counts

    def score(self, task: str, threads: int | None, report: Report) -> float:
        """Return the artifact's score on a task of the zoo."""
        found = evaluate_task(str(self.folder), task, threads=threads, report=report)
        return float(found["value"])


def read_subject(folder: Path) -> Subject:
    """Read an artifact. Raises UnusableInput and DamagedArtifact as artifact.read() does."""
    return Subject(folder, artifact.read(folder))
