"""Time one run of the gate: two models in turns, each started anew.

A coin says who goes first in the first round of a run, and the order turns from round to round.
So what comes of the order cancels within a run; and what the machine does at some time cannot
know on which of the two it falls, even where it does so again in every run.
"""

import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tilewright.gate import run_ratio
from tilewright.measurement import Timer, machine, take_turns
from tilewright.protocol import Backend, Feeds, Report
from tilewright.tools.measure_engines import OURS, measure_engines

T = TypeVar("T")

# Each order has three rounds. Their median outlives two that were disturbed; each round has two
# calls at least.
_ROUNDS, _ROUND_SECONDS = 6, 0.1


@dataclass(frozen=True)
class Duel:
    """An artifact and what it is timed in turns with: another artifact, or an .onnx file.

    `engine` runs the other one, on the same inputs and as many threads.
    """

    artifact: Path
    other: Path
    engine: str
    feeds: Feeds
    threads: int
    report: Report

    def run(self, index: int) -> float:
        """Return the artifact's time over the other's. Raises UnusableInput as engines do."""
        self.report(f"{self.artifact.name}: run {index + 1} against {self.engine}")
        now, before = (f"gate: {path}" for path in (self.artifact, f"before, {self.other}"))
        with tempfile.TemporaryDirectory(prefix="tilewright-gate-") as folder:
            sides = {
                name: _copied(path, Path(folder) / str(place))
                for place, (name, path) in enumerate(
                    _in_either_order((now, self.artifact), (before, self.other))
                )
            }
            contest = measure_engines(
                sides,
                self.feeds,
                self.threads,
                rounds=_ROUNDS,
                round_seconds=_ROUND_SECONDS,
                engine_of={now: OURS, before: self.engine},
            )
        return run_ratio(contest.rounds[now], contest.rounds[before])


@dataclass(frozen=True)
class DeviceDuel:
    """Two artifacts that run on one device beside this machine, such as a board or a GPU."""

    artifact: Path
    other: Path
    backend: Backend
    device: str
    feeds: Feeds
    threads: int
    report: Report

    def is_real(self) -> bool:
        """Run the artifact; say whether the device is the real one. Raises UnusableInput."""
        return self._timer(self.artifact) is not None

    def run(self, index: int) -> float:
        """Return the artifact's time over the other's, each loaded anew for every run."""
        self.report(f"{self.artifact.name}: run {index + 1} on {self.device}")
        sides = _in_either_order(("now", self.artifact), ("before", self.other))
        timers = [timer for _, path in sides if (timer := self._timer(path)) is not None]
        assert len(timers) == len(sides), "a real device stays one"
        names = [name for name, _ in sides]
        rounds = dict(zip(names, take_turns(timers, _ROUNDS), strict=True))
        return run_ratio(rounds["now"], rounds["before"])

    def _timer(self, folder: Path) -> Timer | None:
        return self.backend.timer(folder, self.feeds, self.threads, self.device)


def _in_either_order(one: T, other: T) -> tuple[T, T]:
    return (other, one) if secrets.randbelow(2) else (one, other)


def _copied(path: Path, folder: Path) -> Path:
    """Copy an artifact for one run, which maps its weights into memory.

    Pages of a file lie where they lie for all processes: a place that suits it, or does not,
    would be the same in every run.
    """
    if not path.is_dir():
        return path
    return Path(shutil.copytree(path, folder / path.absolute().name))


def timing_machine(threads: int) -> Mapping[str, Any]:
    """Return what a ratio to onnxruntime hangs on beside the artifact."""
    here = machine()
    return {
        "cpu": here["cpu"],
        "cores": here["cores"],
        "vector": here["vector"],
        "threads": threads,
        "onnxruntime": here["versions"]["onnxruntime"],
    }
