"""Gate: compare artifacts with what they were, figure by figure, or make them the baseline."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tilewright.errors import UnknownName, UnusableInput
from tilewright.gate import Status, Verdict, judge
from tilewright.protocol import Report
from tilewright.tools.baseline import Entry, read_baseline
from tilewright.tools.gate_before import (
    Before,
    before_in_artifact,
    before_in_baseline,
    check_known,
    measured_entry,
)
from tilewright.tools.gate_job import Gate
from tilewright.tools.gate_subject import Subject, read_subjects


@dataclass(frozen=True)
class Check:
    """One figure of an artifact, now and before, and the verdict."""

    artifact: str
    name: str
    unit: str
    before: float | None
    now: float | None
    budget: float
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return what `tilewright gate --json` prints of it."""
        own = {key: value for key, value in vars(self).items() if key != "verdict"}
        # A score may be NaN, which JSON does not know.
        now = None if self.now is None or math.isnan(self.now) else self.now
        return {**own, "now": now, **asdict(self.verdict)}


def gate_artifacts(gate: Gate, report: Report) -> list[Check]:
    """Judge every artifact; all that may be refused is refused before anything is timed.

    Raises UnusableInput where an artifact, the baseline or what it is of cannot be used.
    """
    subjects = _subjects(gate)
    if gate.before is not None:
        other = subjects.pop()
        for subject in subjects:
            _check_alike(subject, other)
        befores = [before_in_artifact(each, other, gate, report) for each in subjects]
    else:
        assert gate.baseline is not None, "one of the two is given"
        entries = read_baseline(gate.baseline)
        check_known(subjects, entries, gate)
        befores = [
            before_in_baseline(each, entries[each.name], gate, report) for each in subjects
        ]
    return [
        check
        for subject, before in zip(subjects, befores, strict=True)
        for check in _checks(subject, before, gate, report)
    ]


def _check_alike(subject: Subject, other: Subject) -> None:
    """Raise UnusableInput where two artifacts are no forms of one model for one target."""
    if subject.interface != other.interface:
        mine, its = ("; ".join(each.interface) for each in (subject, other))
        raise UnusableInput(
            f"gate: {subject.folder} ({mine}) and --against {other.folder} ({its}) are no two "
            "forms of one model for one target, so their figures say nothing of each other. "
            "Give the artifact that it was before."
        )


def updated_baseline(gate: Gate, report: Report) -> tuple[dict[str, Entry], list[str]]:
    """Measure the artifacts; return the baseline's entries with theirs, and their names.

    Raises UnusableInput, and keeps what there was, where a file cannot be used.
    """
    assert gate.baseline is not None, "--update was checked to have one"
    subjects = _subjects(gate)
    entries = read_baseline(gate.baseline) if gate.baseline.exists() else {}
    for subject in subjects:
        new = measured_entry(subject, gate, report)
        known = entries.get(subject.name)
        entries[subject.name] = new if known is None else known.updated(new)
    return entries, [subject.name for subject in subjects]


def _subjects(gate: Gate) -> list[Subject]:
    """Return the artifacts, and the one to compare with behind them, if there is one."""
    if gate.task is not None:
        from tilewright.frontends import zoo

        if gate.task not in zoo.TASKS:
            raise UnknownName("task", gate.task, zoo.TASKS)
    others = [] if gate.before is None else [gate.before]
    return read_subjects([*gate.artifacts, *others], gate.device)


def _checks(subject: Subject, before: Before, gate: Gate, report: Report) -> Iterator[Check]:
    yield _latency(subject, before, gate)
    counts = subject.counts
    for name in {**before.counts, **counts}:
        was, now = before.counts.get(name), counts.get(name)
        verdict = judge(was, now, gate.count_budget)
        yield Check(subject.name, name, "", was, now, gate.count_budget, verdict)
    if gate.task is not None:
        yield _score(subject, before, gate, gate.task, report)


def _latency(subject: Subject, before: Before, gate: Gate) -> Check:
    if before.latency is None:
        verdict = Verdict(Status.UNJUDGED, before.untimed)
        return Check(subject.name, "latency", "", None, None, gate.budget, verdict)
    unit, was, now, verdict = before.latency(gate.budget)
    return Check(subject.name, "latency", unit, was, now, gate.budget, verdict)


def _score(subject: Subject, before: Before, gate: Gate, task: str, report: Report) -> Check:
    from tilewright.frontends import zoo

    was, now = before.scores[task], subject.score(task, gate.threads, report)
    known, budget = zoo.TASKS[task], gate.accuracy_budget
    verdict = judge(was, now, budget, more_is_better=known.higher_is_better)
    unit = f"{known.metric} of model.onnx" if subject.is_emulated else known.metric
    return Check(subject.name, task, unit, was, now, budget, verdict)
