"""Search: what a user asks `tilewright search` for, checked before any work."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.errors import UnusableInput
from tilewright.tools.read_model import ZOO

_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(s|ms|us)")


@dataclass(frozen=True)
class Search:
    """What to search a plan for, in milliseconds and as an agreement from 0 to 1."""

    model: str
    target: str
    latency_budget_ms: float | None = None
    accuracy_floor: float | None = None
    precision: str | None = None
    calibration: Path | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None
    device: str | None = None
    seed: int = 0
    output: Path | None = None
    evaluate: bool = True

    def __post_init__(self) -> None:
        """Raise UnusableInput where nothing is asked for, or something impossible."""
        floor = self.accuracy_floor
        if self.latency_budget_ms is None and floor is None:
            raise UnusableInput(
                "search: there is nothing to search for. Give --latency-budget, such as 3ms, "
                "or --accuracy-floor, such as 0.98, or both."
            )
        if floor is not None and not 0 < floor <= 1:
            meant = f"{floor / 100:.4g}" if 2 <= floor <= 100 else "0.98"
            raise UnusableInput(
                f"--accuracy-floor {floor:g}: it says how well the answers are to agree with "
                f"the dense network's, above 0 and up to 1. Try --accuracy-floor {meant}."
            )
        if self.file.is_dir() or not self.file.name:
            raise UnusableInput(
                f'Output "{self.file}" is a folder. Give the plan a file, such as '
                "--output plan.json."
            )

    @property
    def file(self) -> Path:
        """Where the plan goes: "ppocr-rec.plan.json" unless `output` says otherwise."""
        stem = self.model.removeprefix(ZOO) if self.model.startswith(ZOO) else self.model
        return self.output or Path(f"{Path(stem).stem}.plan.json")


def parse_duration(text: str) -> float:
    """Return the milliseconds of "3ms", "0.003s" or "3000us". Raises UnusableInput."""
    match = _DURATION.fullmatch(text.strip())
    milliseconds = float(match[1]) * _MS[match[2]] if match else 0.0
    if milliseconds <= 0:
        raise UnusableInput(
            f"--latency-budget {text}: write a time above zero with its unit, such as 3ms, "
            "0.003s or 3000us."
        )
    return milliseconds
