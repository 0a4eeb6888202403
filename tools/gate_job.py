"""Gate: what a user asks `tilewright gate` for, checked before any work."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import UnusableInput

_SHARE = re.compile(r"([0-9]*\.?[0-9]+)\s*%")


@dataclass(frozen=True)
class Gate:
    """Which artifacts to compare, with what, and how much worse each figure may be (shares).

    `before` is the artifact that is timed in turns with the one of `artifacts`; without it,
    `baseline` is a file of figures, which `update` writes. `device` overrules where artifacts
    were compiled to run.
    """

    artifacts: tuple[Path, ...]
    baseline: Path | None = None
    before: Path | None = None
    budget: float = 0.05
    count_budget: float = 0.0
    accuracy_budget: float = 0.01
    update: bool = False
    latency: bool = True
    task: str | None = None
    threads: int | None = None
    device: str | None = None
    markdown: Path | None = None
    junit: Path | None = None
    history: Path | None = None
    plot: Path | None = None
    label: str = ""

    def __post_init__(self) -> None:
        """Raise UnusableInput where options contradict each other or ask for nothing."""
        for problem in self._problems():
            raise UnusableInput(f"gate: {problem}")

    def _problems(self) -> Iterator[str]:
        if (self.baseline is None) == (self.before is None):
            yield (
                "give either --baseline FILE, figures to compare with, or --against ARTIFACT, "
                "to be timed in turns with."
            )
        if self.before is not None and self.update:
            yield "--update writes the file of --baseline; with --against there is none."
        if self.before is not None and len(self.artifacts) > 1:
            yield (
                f"--against takes one artifact, and {len(self.artifacts)} are given. Call it "
                "once for each."
            )
        names = [path.name for path in map(Path.absolute, self.artifacts)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield (
                f'two artifacts are called "{twice[0]}", and a baseline knows them by their '
                "names. Rename one, or call gate once for each with a baseline of its own."
            )
        if self.latency and self.budget <= 0:
            yield (
                f"--budget {self.budget:.0%}: times are noisy, so some slow-down must be "
                "allowed. Try --budget 5%, or --no-latency for counts alone."
            )
        if self.plot is not None and self.history is None:
            yield f"--plot {self.plot}: it draws the file of --history. Give that, too."
        if self.update and (self.history is not None):
            yield "--update judges nothing that --history could keep. Leave one of them out."
        written = [*self.outputs.values(), *([self.history] if self.history else [])]
        if len(set(map(os.path.realpath, written))) < len(written):
            yield "two of the files to write are the same. Give each a name of its own."

    @property
    def outputs(self) -> dict[str, Path]:
        """The files that are written whole, by the options that name them."""
        places = {
            "--markdown": self.markdown,
            "--junit": self.junit,
            "--plot": self.plot,
            "--baseline": self.baseline if self.update else None,
        }
        return {option: place for option, place in places.items() if place is not None}


def parse_share(option: str, text: str) -> float:
    """Return 0.05 for "5%". Raises UnusableInput."""
    match = _SHARE.fullmatch(text.strip())
    if match is None or float(match[1]) > 1000:
        raise UnusableInput(
            f"{option} {text}: write by how many percent a figure may be worse, from 0% to "
            f"1000%, such as {option} 5%."
        )
    return float(match[1]) / 100
