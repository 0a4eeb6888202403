"""Measure engines against each other: a process each, taking turns.

Two spinning thread pools in one process spoil each other's times, and a machine's speed drifts;
so every engine has a process of its own and they run in rounds, A B B A: who comes second finds
another machine than who comes first. A waiting process is blocked on its stdin and takes no
time from the others.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.measurement import Samples, machine, pairwise_ratio
from tilewright.protocol import Report, silent
from tilewright.tools import engines
from tilewright.tools.engines import LAUNCHES, PROBE, file_of, interpreter

OURS = "tilewright"
ROUNDS = 7
ROUND_SECONDS = 0.3
WARM_UP_SECONDS = 0.5
# Around a round: how long other pools may spin, how long to probe, and by how much probes of
# one state differ at most.
_QUIET_SECONDS, _PROBE_SECONDS, _ANOTHER_STATE = 0.02, 0.01, 1.8


@dataclass(frozen=True)
class Contest:
    """The rounds of each engine, in the order they were asked for, and its version."""

    rounds: Mapping[str, Sequence[Samples]]
    threads: int
    versions: Mapping[str, str] = field(default_factory=dict)
    # Microseconds to hand work to another core, before and after each round of an engine.
    probes: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)

    def total(self, engine: str) -> Samples:
        """Return all samples of an engine."""
        return Samples.joined(self.rounds[engine])

    def ratio(self, engine: str) -> float:
        """Return how many times longer an engine takes than tilewright.

        Rounds count where the machine was in one state for both, if there are enough of them.
        """
        pairs = list(zip(self.rounds[engine], self.rounds[OURS], strict=True))
        alike = [pair for i, pair in enumerate(pairs) if self._same_state(engine, i)]
        theirs, ours = zip(*(alike if len(alike) >= len(pairs) / 2 else pairs), strict=True)
        return pairwise_ratio(theirs, ours)

    def _same_state(self, engine: str, index: int) -> bool:
        """Say whether the probes around a round of both say that the machine was the same."""
        if not self.probes:
            return True
        around = [*self.probes[engine][index], *self.probes[OURS][index]]
        return max(around) < _ANOTHER_STATE * min(around)

    def as_json(self) -> dict[str, Any]:
        """Return rows, ratios and the machine: what `tilewright bench --json` prints."""
        return {
            "rows": [
                {
                    "engine": engine,
                    "version": self.versions.get(engine, ""),
                    **self.total(engine).as_json(),
                    "threads": self.threads,
                }
                for engine in self.rounds
            ],
            "ratio": {e: round(self.ratio(e), 4) for e in self.rounds if e != OURS},
            "launch_probe_us": {
                engine: [[round(each, 2) for each in pair] for pair in pairs]
                for engine, pairs in self.probes.items()
            },
            "machine": machine(),
        }


def measure_engines(
    models: Mapping[str, Path],
    feeds: Mapping[str, np.ndarray],
    threads: int,
    *,
    rounds: int = ROUNDS,
    round_seconds: float = ROUND_SECONDS,
    probed: bool = False,
    engine_of: Mapping[str, str] | None = None,
    report: Report = silent,
) -> Contest:
    """Time each engine on its model. Raises UnusableInput where one cannot run it.

    A name of `models` that `engine_of` has stands for that engine: so one engine is timed on
    several models.
    With `probed`, the state of the machine is probed around every round.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tilewright-"))
        file = Path(folder) / "feeds.npz"
        np.savez(file, **feeds)  # type: ignore[arg-type]
        # One after the other: loading in parallel would only make each slower.
        workers = {}
        for name, model in models.items():
            engine = (engine_of or {}).get(name, name)
            started: list[str | Path] = [interpreter(engine, report), file_of(engine)]
            workers[name] = stack.enter_context(_worker(name, [*started, model, file], threads))
        probe = None
        if probed and threads > 1:
            command: list[str | Path] = [sys.executable, PROBE, "-", file]
            probe = stack.enter_context(_worker("launch probe", command, threads))
        taken: dict[str, list[Samples]] = {engine: [] for engine in models}
        probes: dict[str, list[tuple[float, float]]] = {}
        for worker in workers.values():
            worker.round(WARM_UP_SECONDS)
        for index in range(rounds):
            report(f"timing {', '.join(models)}: round {index + 1} of {rounds}")
            order = list(workers.items())
            for engine, worker in order[:: -1 if index % 2 else 1]:
                before = _probed(probe)
                taken[engine].append(worker.round(round_seconds))
                if probe is not None:
                    probes.setdefault(engine, []).append((before, _probed(probe)))
    versions = {e: worker.version for e, worker in workers.items()}
    return Contest(taken, threads, versions, probes)


def _probed(probe: "_Worker | None") -> float:
    """Return the microseconds of a launch. No other pool spins then, nor the probe's after."""
    if probe is None:
        return 0.0
    time.sleep(_QUIET_SECONDS)
    found = probe.round(_PROBE_SECONDS).min_ms * 1e3 / LAUNCHES
    time.sleep(_QUIET_SECONDS)
    return found


class _Worker:
    def __init__(self, engine: str, process: "subprocess.Popen[str]") -> None:
        self._engine = engine
        self._process = process
        self.version = str(self.answer()["ready"])

    def round(self, seconds: float) -> Samples:
        """Ask for a round and wait for its samples."""
        assert self._process.stdin is not None, "the worker was started with pipes"
        # A process that has gone is reported by the answer that it does not give.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        return Samples(tuple(self.answer()["samples_ns"]))

    def answer(self) -> dict[str, Any]:
        """Wait for the next line. Raises UnusableInput where the engine gave up."""
        assert self._process.stdout is not None, "the worker was started with pipes"
        line = self._process.stdout.readline()
        if not line:
            raise UnusableInput(
                f'The engine "{self._engine}" ended with exit code {self._process.wait()} '
                "while it was timed; what it printed is above."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnusableInput(f"{self._engine}: {answer['error']}")
        return answer


@contextlib.contextmanager
def _worker(engine: str, command: Sequence[str | Path], threads: int) -> Iterator[_Worker]:
    """Start a Python that opens an engine's file on a model and feeds."""
    python, *files = map(str, command)
    process = subprocess.Popen(
        # By its path, and with -P: another environment's Python knows no tilewright.
        [python, "-P", str(engines.FOLDER / "time_engine.py"), *files, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for this process, which then ends the others.
        start_new_session=True,
    )
    try:
        yield _Worker(engine, process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
