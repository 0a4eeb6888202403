"""Choose how much each layer loses: the least error within a time, or the least time.

What a choice takes is first estimated from the layers' times, then judged as a whole: `latency`
and `agreement` are functions that build or run it. Both remember, so asking twice is free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tilewright.passes.prune.knapsack import best_levels

Levels = tuple[int, ...]
Judge = Callable[[Levels], float]

_BUILDS = 6  # of a search for a latency
_HALVINGS = 6  # of a search for an agreement
_NEAR = 0.95  # of the budget: what is this near to it is not made slower again
_ROUNDING = 1e-6  # of an agreement: folding changes the last places of answers
_STEP = 0.98  # by which less is asked for until the choice changes


class TimedLayers(NamedTuple):
    """Layers that run in one kernel and so take one level.

    `errors` of the answers and `ms` of these kernels, for each level; the first is dense.
    """

    layers: tuple[str, ...]
    errors: np.ndarray
    ms: np.ndarray


class ChosenLevels(NamedTuple):
    """A level for each place, and whether it does what was asked."""

    levels: Levels
    met: bool


@dataclass(frozen=True, eq=False)
class LevelTable:
    """What is known of every place; `dense_ms` is the latency that was measured of no pruning.

    `steps_ms` is the sum of all kernels of the same network, timed one by one: the latency is
    estimated to shrink as this does.
    """

    places: Sequence[TimedLayers]
    dense_ms: float
    steps_ms: float

    @property
    def dense(self) -> Levels:
        """Nothing is pruned."""
        return (0,) * len(self.places)

    @property
    def fastest(self) -> Levels:
        """The levels that save most, whatever they do to the answers."""
        return self.choose(0.0)

    def saved(self, levels: Levels) -> float:
        """Return the milliseconds that the steps save in all."""
        pairs = zip(self.places, levels, strict=True)
        return float(sum(place.ms[0] - place.ms[level] for place, level in pairs))

    def estimate(self, levels: Levels) -> float:
        """Return the estimated latency in milliseconds."""
        return self.dense_ms * (1 - self.saved(levels) / self.steps_ms)

    def error(self, levels: Levels) -> float:
        """Return the error of the answers, as far as it adds up."""
        pairs = zip(self.places, levels, strict=True)
        return float(sum(_rising(place)[level] for place, level in pairs))

    def choose(self, asked_ms: float) -> Levels:
        """Return the levels of least summed error whose estimate is within `asked_ms`.

        Where none is, the fastest ones.
        """
        wanted = self.steps_ms * (1 - asked_ms / self.dense_ms)
        gains = [np.maximum(place.ms[0] - place.ms, 0.0) for place in self.places]
        return tuple(best_levels([_rising(p) for p in self.places], gains, wanted))


def _rising(place: TimedLayers) -> np.ndarray:
    """Return errors that never fall from level to level: where they do, it is chance."""
    return np.maximum.accumulate(place.errors)


def within_budget(
    table: LevelTable, latency: Judge, budget_ms: float, builds: int = _BUILDS
) -> ChosenLevels:
    """Return the choice of least error that was measured to take no longer than a budget.

    What is asked of the table is corrected by what was measured of the choice before. Where
    nothing is within the budget, the fastest that was measured is returned.
    """
    measured: dict[Levels, float] = {}
    asked = budget_ms
    while len(measured) < builds:
        levels = table.choose(asked)
        if levels in measured:
            # It was within the budget: no other is better and known to be. Else ask for less.
            if min(measured.values()) <= budget_ms or levels == table.fastest:
                break
            asked = table.estimate(levels) * _STEP
            continue
        taken = measured[levels] = latency(levels)
        if _NEAR * budget_ms <= taken <= budget_ms:
            break
        asked = budget_ms * table.estimate(levels) / taken
    if min(measured.values()) > budget_ms:
        measured[table.fastest] = latency(table.fastest)
    within = [levels for levels, taken in measured.items() if taken <= budget_ms]
    if within:
        return ChosenLevels(min(within, key=table.error), True)
    return ChosenLevels(min(measured, key=measured.__getitem__), False)


def at_floor(
    table: LevelTable, agreement: Judge, floor: float, halvings: int = _HALVINGS
) -> ChosenLevels:
    """Return the choice of least estimated latency whose agreement is at least `floor`.

    That is searched by halving the time that is asked for, so a faster one may exist where
    asking for more time gives worse answers. Where not even the dense network holds the floor,
    that is returned.
    """
    floor -= _ROUNDING
    if agreement(table.fastest) >= floor:
        return ChosenLevels(table.fastest, True)
    best = table.dense
    if agreement(best) < floor:
        return ChosenLevels(best, False)
    low, high = table.estimate(table.fastest), table.dense_ms
    for _ in range(halvings):
        middle = (low + high) / 2
        levels = table.choose(middle)
        if agreement(levels) >= floor:
            best, high = levels, middle
        else:
            low = middle
    return ChosenLevels(best, True)
