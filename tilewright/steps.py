"""Steps: what a built model does, one after the other, each timed where it stands.

What is in the caches and which core wrote it is then as it will be. One step may run several
nodes of the graph, and another build of the same model may share them out otherwise.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from tilewright.protocol import Report, Steps

_PERCENTILE = 20  # of a step's times: most of what disturbs it makes it slower
_LEAST_RUNS, _MOST_RUNS = 7, 40


class StepTimes(NamedTuple):
    """The nodes that each step runs, and how long it takes."""

    nodes: tuple[frozenset[str], ...]
    microseconds: tuple[float, ...]

    def of(self, nodes: Collection[str]) -> float:
        """Return the microseconds of all steps that some nodes run in."""
        pairs = zip(self.nodes, self.microseconds, strict=True)
        return sum((taken for step, taken in pairs if not step.isdisjoint(nodes)), 0.0)


def time_in_turns(
    models: Sequence[Steps],
    end: float,
    report: Report,
    clock: Callable[[], float] | None = None,
) -> list[StepTimes]:
    """Run every model some times, so that a change of the machine's speed meets all.

    Some runs are made even if `clock` is past `end`; by default it is `time.monotonic`.
    """
    now = clock or time.monotonic
    runs: list[list[Sequence[int]]] = [[] for _ in models]
    for model in models:
        model.time()  # what is read for the first time is slow
    for turn in count():
        if turn >= _MOST_RUNS or (turn >= _LEAST_RUNS and now() > end):
            break
        report(f"run {turn + 1}")
        for taken, model in zip(runs, models, strict=True):
            taken.append(model.time())
    return [typical(model.nodes, taken) for model, taken in zip(models, runs, strict=True)]


def typical(nodes: Sequence[frozenset[str]], runs: Sequence[Sequence[int]]) -> StepTimes:
    """Return the time of each step, of several runs in nanoseconds."""
    each = np.percentile(np.asarray(runs, dtype=float), _PERCENTILE, axis=0) / 1e3
    return StepTimes(tuple(nodes), tuple(each.tolist()))


def meeting(nodes: Collection[str], builds: Iterable[Sequence[frozenset[str]]]) -> set[str]:
    """Add the nodes that share a step with some in any build: all then do the same work."""
    steps = [step for build in builds for step in build]
    found, before = set(nodes), 0
    while len(found) > before:
        before = len(found)
        for step in steps:
            if not step.isdisjoint(found):
                found |= step
    return found
