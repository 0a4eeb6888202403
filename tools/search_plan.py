"""Search: which layer loses how much, for a latency that is asked for or for answers that are.

What each layer's pruning does to the answers and to its time is measured one layer at a time;
choose_levels.py combines them, judge_plan.py says what a choice is worth as a whole.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tilewright import oracle
from tilewright.measurement import machine
from tilewright.plan import Plan
from tilewright.protocol import HOST, Report, silent
from tilewright.tools.choose_levels import (
    ChosenLevels,
    Judge,
    Levels,
    LevelTable,
    TimedLayers,
    at_floor,
    within_budget,
)
from tilewright.tools.evaluate_task import task_scores
from tilewright.tools.judge_plan import PlanJudge
from tilewright.tools.replace_file import replacing
from tilewright.tools.search_job import Search
from tilewright.tools.search_subject import SPARSITIES, Subject
from tilewright.tools.time_levels import places_of, time_levels


def search_plan(search: Search, report: Report = silent) -> dict[str, Any]:
    """Search a plan, write it, and return what `tilewright search --json` prints.

    It is written where what was asked for cannot be had, too: "met" is False then, and the plan
    is the one that comes nearest. What was measured is kept in the cache folder as soon as it
    is known, and a search that was interrupted goes on from it.

    Raises UnusableInput, PassFailed, and CannotLower.
    """
    with replacing(search.file) as file:
        subject = Subject(search, report)
        try:
            with tempfile.TemporaryDirectory(prefix="tilewright-") as scratch:
                found, plan = _searched(subject, PlanJudge(subject, Path(scratch)))
            if search.evaluate and subject.source.zoo:
                found["accuracy"] = _scores(subject, plan)
        except KeyboardInterrupt:
            if subject.of_answers.any() or subject.of_times.any():
                report("what was measured is kept: the same command goes on from there")
            raise
        plan.write(file)
    return found


def _searched(subject: Subject, judge: PlanJudge) -> tuple[dict[str, Any], Plan]:
    """Return the plan, and what is told of it."""
    table = _level_table(subject, judge)

    def agreement(levels: Levels) -> float:
        return judge.agreement(_plan(subject, table, levels)).value

    def latency(levels: Levels) -> float:
        return float(judge.latency(_plan(subject, table, levels))["median_ms"])

    choice = _choose(subject.search, table, latency, agreement, subject.report)
    plan = _plan(subject, table, choice.levels)
    return _described(subject, judge, table, choice, plan), plan


def _choose(
    search: Search,
    table: LevelTable,
    latency: Judge,
    agreement: Judge,
    report: Report,
) -> ChosenLevels:
    budget, floor = search.latency_budget_ms, search.accuracy_floor
    choice = ChosenLevels(table.dense, True)
    if budget is not None:
        choice = within_budget(table, latency, budget)
        if floor is None or (choice.met and agreement(choice.levels) >= floor):
            return choice
        report(f"the floor of {floor:g} comes first: searching the fastest plan that holds it")
    assert floor is not None, "a search has a budget or a floor"
    choice = at_floor(table, agreement, floor)
    in_time = budget is None or latency(choice.levels) <= budget
    return ChosenLevels(choice.levels, choice.met and in_time)


def _plan(subject: Subject, table: LevelTable, levels: Levels) -> Plan:
    """Return the plan of a choice; layers that stay dense are not named."""
    return Plan(
        {
            layer: subject.level(layer, SPARSITIES[level - 1])
            for place, level in zip(table.places, levels, strict=True)
            for layer in place.layers
            if level
        }
    )


def _level_table(subject: Subject, judge: PlanJudge) -> LevelTable:
    errors = subject.errors()
    devices = subject.backend.boards(subject.device)
    times = time_levels(SPARSITIES, subject.steps, subject.of_times, devices, subject.report)
    places, steps_ms = places_of(errors, times)
    subject.report("the network without pruning")
    dense_ms = float(judge.latency(Plan())["median_ms"])
    return LevelTable(places, dense_ms, steps_ms)


def _described(
    subject: Subject, judge: PlanJudge, table: LevelTable, choice: ChosenLevels, plan: Plan
) -> dict[str, Any]:
    search, agreement, latency = subject.search, judge.agreement(plan), judge.latency(plan)
    # Of the dense network as it was in the same turns.
    dense_ms = latency["dense"]["median_ms"]
    estimated = table.estimate(choice.levels) * dense_ms / table.dense_ms
    return {
        "model": search.model,
        "model_sha256": subject.source.sha256,
        "target": subject.target.name,
        "precision": subject.precision,
        "latency_budget_ms": search.latency_budget_ms,
        "accuracy_floor": search.accuracy_floor,
        "met": choice.met,
        "written": str(search.file),
        "plan": {"levels": {name: dict(level) for name, level in plan.levels.items()}},
        "latency": {
            **latency,
            "device": machine()["cpu"] if subject.device == HOST else subject.device,
            "threads": subject.threads,
        },
        "estimated_latency_ms": round(estimated, 4),
        "agreement": agreement.value,
        "same_argmax": agreement.same_argmax,
        "judged_samples": subject.held.samples,
        "layers": [
            row
            for place, level in zip(table.places, choice.levels, strict=True)
            for row in _rows(subject, place, level)
        ],
        "notes": [note._asdict() for note in subject.notes],
        "accuracy": [],
    }


def _rows(subject: Subject, place: TimedLayers, level: int) -> list[dict[str, Any]]:
    """Describe the layers of a place; time and error are those of all of them together."""
    return [
        {
            "name": name,
            "tile": str(subject.tiles[name]),
            "sparsity": SPARSITIES[level - 1] if level else 0.0,
            "dense_ms": round(float(place.ms[0]), 4),
            "ms": round(float(place.ms[level]), 4),
            "error": float(place.errors[level]),
            "with": [other for other in place.layers if other != name],
        }
        for name in place.layers
    ]


def _scores(subject: Subject, plan: Plan) -> list[dict[str, Any]]:
    """Score the network as `compile --plan` makes it, out of all samples, on its tasks."""
    item = f"scores of {plan}"
    found: list[dict[str, Any]] | None = subject.of_answers.find(item)
    if found is None:
        session = oracle.session(subject.pruned(plan, subject.calibration))
        run = partial(oracle.outputs_of, session)
        found = task_scores(subject.source, run, subject.report)
        subject.of_answers.keep(item, found)
    return found
