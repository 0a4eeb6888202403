"""Before: what the gate compares an artifact with, out of a baseline or another artifact."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from tilewright import artifact, oracle
from tilewright.errors import UnusableInput
from tilewright.gate import MOST_RUNS, Verdict, judge_runs
from tilewright.protocol import HOST, Feeds, Report
from tilewright.tools.baseline import Entry, Timed
from tilewright.tools.count_threads import count_threads
from tilewright.tools.find_feeds import first_feeds
from tilewright.tools.find_target import find_backend
from tilewright.tools.gate_job import Gate
from tilewright.tools.gate_subject import Subject
from tilewright.tools.measure_engines import OURS
from tilewright.tools.time_run import DeviceDuel, Duel, timing_machine

_REFERENCE = "onnxruntime"
_NO_LATENCY = "--no-latency was given"


class Latency(NamedTuple):
    """A verdict on times, and the medians that people read, in times of what `unit` says."""

    unit: str
    before: float
    now: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Before:
    """Figures to compare with. `latency` measures and judges; `untimed` says why it cannot."""

    counts: Mapping[str, float]
    scores: Mapping[str, float]
    latency: Callable[[float], Latency] | None = None
    untimed: str = ""


def before_in_baseline(subject: Subject, entry: Entry, gate: Gate, report: Report) -> Before:
    """Return what a baseline says of an artifact.

    Raises UnusableInput where its times are of another machine or another onnxruntime.
    """
    if untimed := _untimed_here(subject, gate):
        return Before(entry.counts, entry.scores, untimed=untimed)
    threads = _threads(gate, report)
    timed = entry.times_on(timing_machine(threads))
    if timed is None:
        raise UnusableInput(_incomparable(subject, entry, timing_machine(threads)))
    duel = _with_reference(subject, threads, report)
    return Before(entry.counts, entry.scores, partial(_since, duel, timed.ratios))


def before_in_artifact(subject: Subject, other: Subject, gate: Gate, report: Report) -> Before:
    """Return another artifact to compare with, to be timed in turns with this one."""
    scores = {}
    if gate.task is not None:
        scores[gate.task] = other.score(gate.task, gate.threads, report)
    try:
        duel = _duel(subject, other, gate, report)
    except _Untimed as reason:
        return Before(other.counts, scores, untimed=str(reason))
    return Before(other.counts, scores, partial(_in_turns, duel.run, other.name))


def measured_entry(subject: Subject, gate: Gate, report: Report) -> Entry:
    """Measure all that a baseline keeps of an artifact."""
    timed: tuple[Timed, ...] = ()
    scores = {}
    if not _untimed_here(subject, gate):
        threads = _threads(gate, report)
        duel = _with_reference(subject, threads, report)
        ratios = [round(duel.run(index), 5) for index in range(MOST_RUNS)]
        timed = (Timed(timing_machine(threads), ratios),)
    if gate.task is not None:
        score = scores[gate.task] = subject.score(gate.task, gate.threads, report)
        if not math.isfinite(score):
            raise UnusableInput(
                f'gate --update: the score of "{subject.name}" on {gate.task} is {score}, '
                "which is no baseline. Nothing was written; give an artifact that works."
            )
    return Entry(subject.identity, subject.counts, scores, timed)


def check_known(subjects: list[Subject], entries: Mapping[str, Entry], gate: Gate) -> None:
    """Raise UnusableInput where a baseline lacks what an artifact is to be compared with."""
    for subject in subjects:
        entry = entries.get(subject.name)
        if entry is None:
            known = ", ".join(sorted(entries)) or "none"
            found = f'it has no artifact "{subject.name}" (it has {known})'
        elif entry.identity != subject.identity:
            ours, theirs = _difference(subject.identity, entry.identity)
            found = f'"{subject.name}" is something else there: {theirs}, and here {ours}'
        elif gate.task is not None and gate.task not in entry.scores:
            found = f'it has no score of "{subject.name}" on {gate.task}'
        else:
            continue
        raise UnusableInput(
            f'gate: the baseline "{gate.baseline}" cannot be compared with: {found}. Run this '
            "with --update to make what there is now the baseline."
        )


def _since(duel: Duel, ratios_before: Sequence[float], budget: float) -> Latency:
    """Judge the ratios to a reference now against those of the baseline, run by run.

    Runs before and now have one distribution where nothing changed, so a quotient of two is as
    often above 1 as below: what the test asks for.
    """
    ratios: list[float] = []

    def run(index: int) -> float:
        ratios.append(duel.run(index))
        return ratios[-1] / ratios_before[index]

    verdict = judge_runs(run, budget)
    before, now = statistics.median(ratios_before), statistics.median(ratios)
    return Latency(f"x {_REFERENCE}", before, now, verdict)


def _in_turns(run: Callable[[int], float], before: str, budget: float) -> Latency:
    verdict = judge_runs(run, budget)
    return Latency(f"x {before}", 1.0, verdict.ratio, verdict)


class _Untimed(Exception):
    """Why two artifacts are not timed in turns."""


def _duel(subject: Subject, other: Subject, gate: Gate, report: Report) -> Duel | DeviceDuel:
    if not gate.latency:
        raise _Untimed(_NO_LATENCY)
    if (subject.device, other.device) == (HOST, HOST):
        feeds, threads = _feeds(subject), _threads(gate, report)
        return Duel(subject.folder, other.folder, OURS, feeds, threads, report)
    place, there = ((each.device, each.manifest["backend"]) for each in (subject, other))
    if place != there:
        raise _Untimed(f'one runs on "{subject.device}", the other on "{other.device}"')
    backend = find_backend(subject.manifest["backend"])
    try:
        device = backend.find_device(subject.device)
    except UnusableInput as error:
        raise _Untimed(f"{error}") from error
    folders, threads = (subject.folder, other.folder), _threads(gate, report)
    duel = DeviceDuel(*folders, backend, device, _feeds(subject), threads, report)
    if not duel.is_real():
        raise _Untimed(f'"{device}" is not the device itself')
    return duel


def _untimed_here(subject: Subject, gate: Gate) -> str:
    """Say why times of an artifact are not kept as ratios to the reference; "" if they are."""
    if not gate.latency:
        return _NO_LATENCY
    if subject.device != HOST:
        return f'it runs on "{subject.device}", not on this machine'
    return ""


def _with_reference(subject: Subject, threads: int, report: Report) -> Duel:
    model = subject.folder / artifact.MODEL
    return Duel(subject.folder, model, _REFERENCE, _feeds(subject), threads, report)


def _feeds(subject: Subject) -> Feeds:
    return first_feeds(str(subject.folder), None, {})


def _threads(gate: Gate, report: Report) -> int:
    return count_threads(gate.threads, report) or oracle.cores()


def _incomparable(subject: Subject, entry: Entry, here: Mapping[str, Any]) -> str:
    said = "it has none"
    if entry.timed:
        near = min(
            (each.machine for each in entry.timed),
            key=lambda machine: sum(machine.get(key) != here[key] for key in here),
        )
        ours, theirs = _difference(here, near)
        said = f"{theirs} there, and {ours} here"
    return (
        f'gate: times of "{subject.name}" in the baseline cannot be compared with those of '
        f"this machine: {said}. They say nothing of another CPU or {_REFERENCE}: add this "
        "machine's with --update, time two artifacts in turns with --against, or judge counts "
        "alone with --no-latency."
    )


def _difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[str, str]:
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    ours, theirs = (
        ", ".join(f"{key} {_told(side.get(key))}" for key in keys) for side in (here, there)
    )
    return ours, theirs


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
