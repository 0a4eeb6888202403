"""Allocators by name, and what they may find out by running the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.passes.prune import allocate, safe_rates
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.knapsack import best_levels, spdy
from tilewright.passes.prune.probe import Constants, Probe
from tilewright.protocol import Context, Report

# Of a place's entries: the levels that dynamic programming chooses from.
_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_EVALUATIONS = 60  # of a whole network, in SPDY's search


class Removal(NamedTuple):
    """A place, and what the network's constants are without its first so many entries.

    `without` starts from the dense network; other places' constants are others.
    """

    place: Place
    without: Callable[[int], Constants]


@dataclass(frozen=True)
class Question:
    """How much to take from each place: what is known, and what can be found out.

    `removals` runs through the network and yields one for each of the places, these very
    objects, in any order.
    """

    places: Sequence[Place]
    removals: Callable[[], Iterator[Removal]]
    dense: Graph
    held: Calibration
    sparsity: float
    floor: float
    report: Report

    @cached_property
    def probe(self) -> Probe:
        """The dense network's answers on samples that nothing is fitted to."""
        return Probe(self.dense, self.held)

    def costs(self) -> list[np.ndarray]:
        """Return for each place the errors of the answers without its entries alone."""
        found: dict[int, np.ndarray] = {}
        for removal in self.removals():
            self.report(
                f"probing {removal.place.name} ({len(found) + 1} of {len(self.places)})"
            )
            found[id(removal.place)] = self.probe.costs(removal.without, removal.place.most)
        return [found[id(place)] for place in self.places]

    @cached_property
    def error(self) -> Callable[[Sequence[int]], float]:
        """What the answers are off with so many entries gone from all places at once."""
        by_place = {id(removal.place): removal for removal in self.removals()}
        removals = [by_place[id(place)] for place in self.places]
        asked: dict[tuple[int, ...], float] = {}
        solved: dict[tuple[int, int], Constants] = {}

        def of(removed: Sequence[int]) -> float:
            key = tuple(removed)
            if key not in asked:
                changes: dict[str, np.ndarray] = {}
                for index, count in enumerate(key):
                    if count and (index, count) not in solved:
                        solved[index, count] = removals[index].without(count)
                    changes |= solved.get((index, count), {})
                asked[key] = self.probe.error_with(changes)
                self.report(
                    f"{len(asked)} ways to share tried, the last is {asked[key]:.4f} off"
                )
            return asked[key]

        return of

    def agreement(self, removed: Sequence[int]) -> float:
        """Return 1 - the error of the answers, relative to how far the dense ones vary."""
        return 1 - self.error(removed)

    def levels(self) -> tuple[list[np.ndarray], list[np.ndarray], float, list[list[int]]]:
        """Return costs, savings, the budget, and the counts of each place's levels."""
        counts = [
            sorted({allocate.nearest(place, share) for share in _LEVELS})
            for place in self.places
        ]
        costs = [
            np.concatenate([[0.0], cost])[each]
            for cost, each in zip(self.costs(), counts, strict=True)
        ]
        saves = [p.saves * np.array(each) for p, each in zip(self.places, counts, strict=True)]
        return costs, saves, self.budget, counts

    @property
    def budget(self) -> float:
        """What is to be saved in all."""
        return self.sparsity * sum(place.saves * place.entries for place in self.places)


def _dynamic(question: Question) -> list[int]:
    costs, saves, budget, counts = question.levels()
    levels = best_levels(costs, saves, budget)
    return [each[level] for each, level in zip(counts, levels, strict=True)]


def _searched(question: Question) -> list[int]:
    costs, saves, budget, counts = question.levels()

    def counted(levels: Sequence[int]) -> list[int]:
        return [each[level] for each, level in zip(counts, levels, strict=True)]

    def judge(levels: Sequence[int]) -> float:
        return question.error(counted(levels))

    return counted(spdy(costs, saves, budget, judge, evaluations=_EVALUATIONS))


def _prioritized(question: Question) -> list[int]:
    removed, _ = safe_rates.prioritized(
        question.places, question.agreement, question.floor, question.budget
    )
    return removed


# "uniform" needs none: every place loses the same share.
ALLOCATORS: Mapping[str, Callable[[Question], list[int]]] = {
    "global": lambda q: allocate.threshold(q.places, q.costs(), q.sparsity),
    "dp": _dynamic,
    "spdy": _searched,
    "erk": lambda q: allocate.erdos_renyi_kernel(q.places, q.sparsity),
    "sensitivity": lambda q: safe_rates.sensitivity(q.places, q.agreement, q.floor),
    "prioritized": _prioritized,
}
UNIFORM = "uniform"
NAMES = (UNIFORM, *ALLOCATORS)
# Those that ask only what the places are.
_BLIND = (UNIFORM, "erk")


def check_allocation(name: str, how: str, criterion: str, context: Context) -> None:
    """Raise UnusableInput where there is nothing to measure answers on."""
    if how not in _BLIND and (context.calibration is None or criterion == "magnitude"):
        raise UnusableInput(
            f"{name}: allocate={how} measures what each layer does to the answers: it "
            "needs criterion=obs and example inputs. Give --calibration FILE.npz."
        )
