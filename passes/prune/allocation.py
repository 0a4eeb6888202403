"""Allocators by name, and what they may find out by running the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.passes.prune import allocate, safe_rates
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.blocks import alikeness_of
from tilewright.passes.prune.knapsack import best_levels, spdy
from tilewright.passes.prune.probe import Constants, Probe
from tilewright.passes.prune.set_aside import Aside
from tilewright.passes.prune.tolerance import tolerance_of_differences
from tilewright.protocol import Context, Pass, Report, silent

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
    objects, in any order. `rankings` are two orders of the entries of each place, by two
    criteria and from the least important on, of which `alpha` is asked. `heal` is what training
    makes of a network, where the pipeline has some.
    """

    places: Sequence[Place]
    removals: Callable[[], Iterator[Removal]]
    dense: Graph
    held: Calibration | None
    sparsity: float
    floor: float
    report: Report
    alpha: float = 0.0
    rankings: Callable[[], Sequence[tuple[np.ndarray, np.ndarray]]] = tuple
    heal: Callable[[Graph], Graph] | None = None
    seed: int = 0

    @cached_property
    def probe(self) -> Probe:
        """The dense network's answers on samples that nothing is fitted to."""
        assert self.held is not None, "check_allocation admits only what asks for no answers"
        return Probe(self.dense, self.held)

    def costs(self) -> list[np.ndarray]:
        """Return for each place the errors of the answers without its entries alone."""
        return self._costs(self.probe.costs)

    def healed_costs(self) -> list[np.ndarray]:
        """Return for each place the errors that training leaves of those."""
        assert self.heal is not None, "check_allocation admits only what has no need of it"
        return self._costs(partial(self.probe.costs, healed=self.heal))

    def _costs(self, costs: Callable[..., np.ndarray]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for removal in self.removals():
            self.report(
                f"probing {removal.place.name} ({len(found) + 1} of {len(self.places)})"
            )
            found[id(removal.place)] = costs(removal.without, removal.place.most)
        return [found[id(place)] for place in self.places]

    @cached_property
    def error(self) -> Callable[[Sequence[int]], float]:
        """What the answers are off with so many entries gone from all places at once.

        The numbers are 0 and `counts_of` each place. What the places are then is found out at
        once and kept in a file, so that no more than one place's statistics are in memory.
        """
        solved = Aside(self._alternatives())
        asked: dict[tuple[int, ...], float] = {}

        def of(removed: Sequence[int]) -> float:
            key = tuple(removed)
            if key not in asked:
                changes: dict[str, np.ndarray] = {}
                for place in enumerate(key):
                    changes |= solved.read(place) if place[1] else {}
                asked[key] = self.probe.error_with(changes)
                self.report(
                    f"{len(asked)} ways to share tried, the last is {asked[key]:.4f} off"
                )
            return asked[key]

        return of

    def _alternatives(self) -> Iterator[tuple[tuple[int, int], Constants]]:
        """Yield what each place is without each of its counts, by place and count."""
        indices = {id(place): index for index, place in enumerate(self.places)}
        for done, (place, without) in enumerate(self.removals(), 1):
            self.report(f"pruning {place.name} alone ({done} of {len(self.places)})")
            for count in allocate.counts_of(place):
                yield (indices[id(place)], count), without(count)

    def agreement(self, removed: Sequence[int]) -> float:
        """Return 1 - the error of the answers, relative to how far the dense ones vary."""
        return 1 - self.error(removed)

    def levels(self) -> tuple[list[np.ndarray], list[np.ndarray], float, list[list[int]]]:
        """Return costs, savings, the budget, and the counts of each place's levels."""
        counts = [[0, *allocate.counts_of(place)] for place in self.places]
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

    return counted(
        spdy(costs, saves, budget, judge, seed=question.seed, evaluations=_EVALUATIONS)
    )


def _entropic(question: Question) -> list[int]:
    places, share = question.places, question.sparsity
    assert question.held is not None
    layers = [place.layers for place in places]
    alike = alikeness_of(layers, question.dense, question.held)
    removed = allocate.uniform(places, share)
    inside = [index for index, each in enumerate(alike) if each is not None]
    within = [places[index] for index in inside]
    cosines = [each for each in alike if each is not None]
    for index, count in zip(inside, allocate.entropic(within, cosines, share), strict=True):
        removed[index] = count
    return removed


class Allocator(NamedTuple):
    """How entries are shared out, and what is measured for it.

    `needs` are "examples" (inputs) and "heal" (that pass behind this one); `reads` are the
    options that it goes by, and the passes that have them know it.
    """

    about: str
    source: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    of: Callable[[Question], list[int]]


ALLOCATORS: Mapping[str, Allocator] = {
    "uniform": Allocator(
        about="The same share everywhere.",
        source="",
        needs=(),
        reads=("sparsity",),
        of=lambda q: allocate.uniform(q.places, q.sparsity),
    ),
    "global": Allocator(
        about="By one threshold on what the answers suffer for what is saved.",
        source="ours, measured as in probe.py",
        needs=("examples",),
        reads=("sparsity",),
        of=lambda q: allocate.threshold(q.places, q.costs(), q.sparsity),
    ),
    "plasticity": Allocator(
        about="As global, but once heal, behind it, has trained: five times for each place.",
        source='after Liu et al., "GraNet" (2021), who measure how much accuracy recovers',
        needs=("examples", "heal"),
        reads=("sparsity",),
        of=lambda q: allocate.threshold(q.places, q.healed_costs(), q.sparsity),
    ),
    "dp": Allocator(
        about="The least sum of errors for the budget, by dynamic programming.",
        source='Frantar & Alistarh, "Optimal Brain Compression" (2022)',
        needs=("examples",),
        reads=("sparsity",),
        of=_dynamic,
    ),
    "spdy": Allocator(
        about="Dynamic programming with coefficients that a search finds.",
        source='Frantar & Alistarh, "SPDY" (2022)',
        needs=("examples",),
        reads=("sparsity",),
        of=_searched,
    ),
    "erk": Allocator(
        about="By the shapes of layers: large ones lose more.",
        source='Evci et al., "RigL" (2020)',
        needs=(),
        reads=("sparsity",),
        of=lambda q: allocate.erdos_renyi_kernel(q.places, q.sparsity),
    ),
    "sensitivity": Allocator(
        about="What each place tolerates by itself, as far as the answers hold the floor.",
        source='Putra et al., "PSViT" (2026)',
        needs=("examples",),
        reads=("floor",),
        of=lambda q: safe_rates.sensitivity(q.places, q.agreement, q.floor),
    ),
    "prioritized": Allocator(
        about="From the largest place down as much as the floor allows.",
        source='Putra et al., "PrimeSVT" (2026)',
        needs=("examples",),
        reads=("sparsity", "floor"),
        of=lambda q: safe_rates.prioritized(q.places, q.agreement, q.floor, q.budget),
    ),
    "tolerance": Allocator(
        about="What is little used, as long as no more than alpha of it matters; no sparsity.",
        source='Lin et al., "FAIR-Pruner" (2025)',
        needs=("examples",),
        reads=("alpha", "rankings"),
        of=lambda q: tolerance_of_differences(q.places, q.rankings(), q.alpha),
    ),
    "entropic": Allocator(
        about="More from blocks that change the residual stream little.",
        source='Chiang et al., "UniQL" (2025)',
        needs=("examples",),
        reads=("sparsity",),
        of=_entropic,
    ),
}
UNIFORM, TOLERANCE = "uniform", "tolerance"


def allocators_of(step: Pass) -> list[str]:
    """Return the allocators that a pass knows, the default first."""
    return [name for name, each in ALLOCATORS.items() if set(each.reads) <= vars(step).keys()]


def check_read(step: Pass) -> None:
    """Raise UnusableInput for an option that is not its default and that no one reads.

    A sparsity is let pass: what is asked of a whole pipeline is written into all its passes.
    """
    how = vars(step)["allocate"]
    for option, value in vars(step).items():
        readers = [name for name, known in ALLOCATORS.items() if option in known.reads]
        if option == "sparsity" or not readers or how in readers:
            continue
        if value != getattr(type(step), option):
            raise UnusableInput(
                f"{step.name}: {option} is read by allocate={' and '.join(readers)} alone; "
                f"with allocate={how} it would have no effect. Leave it out, or choose such "
                "an allocator."
            )


def check_allocation(name: str, how: str, context: Context) -> None:
    """Raise UnusableInput where there is nothing to measure answers on, or to heal with."""
    if "examples" in ALLOCATORS[how].needs and context.calibration is None:
        raise UnusableInput(
            f"{name}: allocate={how} measures what the network does on example inputs, and "
            "there are none. Give --calibration FILE.npz."
        )
    if "heal" in ALLOCATORS[how].needs and _healing(context) is None:
        raise UnusableInput(
            f"{name}: allocate={how} measures how well the network recovers in training, and "
            "nothing trains it. Put heal behind it in the pipeline."
        )


def healer(
    dense: Graph, fitted: Calibration | None, context: Context
) -> Callable[[Graph], Graph] | None:
    """Return what the pass `heal`, if there is one behind, makes of a network.

    It trains on `fitted`, towards the network before any pruning.
    """
    step = _healing(context)
    if step is None:
        return None
    known = replace(
        context,
        calibration=fitted,
        dense=context.dense or dense,
        unfinished=None,
        report=silent,
        behind=(),
    )
    return lambda graph: step(graph, known).graph


def _healing(context: Context) -> Pass | None:
    return next((step for step in context.behind if step.name == "heal"), None)
