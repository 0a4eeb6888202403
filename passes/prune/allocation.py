"""Allocators by name, and whether they have what they need."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.passes.prune import allocate, safe_rates
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.blocks import alikeness_of
from tilewright.passes.prune.knapsack import best_levels, spdy
from tilewright.passes.prune.probe import HELD_OUT
from tilewright.passes.prune.question import Question, Removal
from tilewright.passes.prune.tolerance import tolerance_of_differences
from tilewright.protocol import Context, Pass, silent

_EVALUATIONS = 60  # of a whole network, in SPDY's search
_FLOOR = (
    "floor: 1 - their squared errors relative to how far the dense answers vary, on samples "
    "that nothing is fitted to"
)


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
        about=f"What each place tolerates by itself, as far as the answers hold {_FLOOR}.",
        source='Putra et al., "PSViT" (2026)',
        needs=("examples",),
        reads=("floor",),
        of=lambda q: safe_rates.sensitivity(q.places, q.agreement, q.floor),
    ),
    "prioritized": Allocator(
        about=f"From the largest place down, as long as the answers hold {_FLOOR}.",
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
    """Raise UnusableInput for an option that is not its default and that no one reads."""
    how = vars(step)["allocate"]
    for option, value in vars(step).items():
        readers = [name for name, known in ALLOCATORS.items() if option in known.reads]
        if not readers or how in readers:
            continue
        if value != getattr(type(step), option):
            raise UnusableInput(
                f"{step.name}: {option} is read by allocate={' and '.join(readers)} alone; "
                f"with allocate={how} it would have no effect. Leave it out, or choose such "
                "an allocator."
            )


def check_allocation(step: Pass, context: Context) -> None:
    """Raise UnusableInput where there is nothing to measure answers on, or to heal with."""
    name, how = step.name, vars(step)["allocate"]
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


def share_out(
    step: Pass,
    places: Sequence[Place],
    removals: Callable[[Calibration | None], Iterator[Removal]],
    rankings: Callable[[Calibration | None], Sequence[tuple[np.ndarray, np.ndarray]]],
    dense: Graph,
    context: Context,
) -> list[int]:
    """Return how many entries each place loses, as the allocator of a pass says.

    `removals` and `rankings` are those of a `Question`, by the calibration samples that they
    may be fitted to: the others judge. Places are those objects that removals speak of.
    """
    fitted = held = context.calibration
    if context.calibration is not None:
        fitted, held = context.calibration.held_out(HELD_OUT)
    options = vars(step)
    question = Question(
        places,
        partial(removals, fitted),
        dense,
        held,
        options["sparsity"],
        options["floor"],
        lambda text: context.report(f"{step.name}: {text}"),
        options.get("alpha", 0.0),
        partial(rankings, fitted),
        _healer(dense, fitted, context),
        context.seed,
    )
    return ALLOCATORS[options["allocate"]].of(question)


def _healer(
    dense: Graph, fitted: Calibration | None, context: Context
) -> Callable[[Graph], Graph] | None:
    """Return what the pass `heal`, if there is one behind, makes of a network.

    It trains towards the network before any pruning.
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
