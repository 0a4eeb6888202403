"""Remove channels, hidden features and heads for good, and refit what reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.options import (
    check_below_one,
    check_count,
    check_name,
    check_positive,
    check_share,
    unusable,
)
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.allocation import (
    TOLERANCE,
    UNIFORM,
    allocators_of,
    check_allocation,
    check_read,
    share_out,
)
from tilewright.passes.prune.question import Removal
from tilewright.passes.prune.rank_entries import ranked
from tilewright.passes.prune.removable import Cut, planned_cuts, removable, stays
from tilewright.passes.prune.score_entries import Entries
from tilewright.passes.prune.scoring import (
    OBS,
    check_classes,
    check_criterion,
    criteria_of,
    without_data,
)
from tilewright.passes.prune.take_entries import Orders, Taking
from tilewright.protocol import Context, Note, Outcome
from tilewright.threads import one_blas_thread

_LEAST = 0.2  # of a dimension's entries, which stay in any case


@dataclass(frozen=True)
class PruneChannels:
    """Remove entries of the dimensions that layers add up over.

    Such are the channels between layers, residual streams, the hidden features of a perceptron
    and the heads of attention, wherever they run through normalizations, depthwise
    convolutions, reshapes and gates. Their weights are taken out, so the model is smaller and
    faster everywhere.

    How much goes where is said by `allocate` (allocation.py). With "uniform" each dimension
    loses the share `sparsity` of its entries; with "global" and others what moves the network's
    answers least (probe.py), until `sparsity` of the multiplications that all their entries
    stand for is saved, or while the answers agree to at least `floor`. "tolerance" compares two
    `rankings`, by any two criteria, and goes by `alpha` alone.

    Which ones go is said by `criterion` (scoring.py). "obs" is greedy elimination of column
    blocks of the layers that read them (joint.py); the others are scores from the literature.
    With calibration data, whatever was chosen by, the layers that read it are then refitted to
    the dense network's outputs, on what the already pruned network gives them, behind their
    activations (descent.py); `refit=false` leaves their weights as they are. Without data "obs"
    becomes "magnitude".

    What is kept is a multiple of `multiple`, where there is much more than that. What the last
    layer reads stays (`ends`), as do dimensions whose entries hold fewer than `smallest`
    weights in all, those read by layers named in `skip`, and those that a normalization
    averages over or callers see. A plan in the context says instead, for layers by name, which
    share "channels" of what they read goes, to the entry (removable.py).
    """

    sparsity: float = 0.3
    criterion: str = "obs"
    allocate: str = "uniform"
    floor: float = 0.97
    multiple: int = 8
    damp: float = 0.05
    ends: bool = False
    smallest: int = 4096
    skip: tuple[str, ...] = ()
    refit: bool = True
    alpha: float = 0.05
    rankings: tuple[str, ...] = ("utilization", "reconstruction")

    name: ClassVar[str] = "prune-channels"
    source: ClassVar[str] = (
        'Frantar & Alistarh, "Optimal Brain Compression" (2022), with column blocks; groups as '
        'in Fang et al., "DepGraph" (2023)'
    )
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_below_one(self, "sparsity")
        check_name(self, "criterion", criteria_of(self.name))
        check_name(self, "allocate", allocators_of(self))
        scores = [each for each in criteria_of(self.name) if each != OBS]
        if len(set(self.rankings)) != 2 or not set(self.rankings) <= set(scores):
            wanted = f"two of {', '.join(scores)}, such as utilization|reconstruction"
            raise unusable(self, "rankings", wanted)
        check_share(self, "alpha", "floor")
        check_read(self)
        if self.multiple < 1:
            raise unusable(self, "multiple", "a whole number from 1 on")
        check_positive(self, "damp")
        check_count(self, "smallest")

    def check(self, context: Context, /) -> None:
        """Raise UnusableInput where criteria or allocator have not what they need."""
        if context.plan is None:
            check_allocation(self, context)
        for each in self._criteria(context):
            check_criterion(self.name, each, context)

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Remove what every cut takes.

        Raises UnusableInput as `check`, and where a plan asks for what cannot be or a criterion
        for classes that are none.
        """
        self.check(context)
        for each in self._criteria(context):
            check_classes(self.name, each, graph)
        dense = graph.edit().sorted()
        pruned = dense.edit()
        couplings = Couplings(pruned)
        if context.plan is not None:
            found = removable(pruned, couplings, ends=True, smallest=0, skip=())
            cuts = planned_cuts(context.plan, pruned, couplings, found)
        else:
            found = removable(
                pruned, couplings, ends=self.ends, smallest=self.smallest, skip=self.skip
            ).without_overlaps()
            cuts = [c._replace(kept=self._left(c.dimension.size)) for c in found.cuts]
            cuts = [cut for cut in cuts if cut.gone]
        notes = [*couplings.notes, *stays(couplings, found.reasons)]
        names = [layer.name for cut in cuts for layer in cut.layers]
        criterion, warnings = without_data(self.name, self.criterion, names, context)
        notes += warnings
        calibration = context.calibration
        asked = Entries(dense, couplings, cuts, calibration, context.seed)
        with one_blas_thread():
            if self.allocate != UNIFORM and context.plan is None and cuts:
                cuts = self._allocated(asked, criterion, context)
            taking = self._taking(criterion, asked._replace(cuts=cuts))
            gone = taking.taken(
                pruned,
                cuts,
                calibration,
                lambda text: context.report(f"{self.name}: {text}"),
            )
        notes += [_removed(layer, cut) for cut in cuts for layer in cut.layers]
        kept = {
            dimension: np.setdiff1d(np.arange(dimension.size), entries).tolist()
            for dimension, entries in gone.items()
        }
        return Outcome(couplings.select(kept) if kept else pruned, tuple(notes))

    def _criteria(self, context: Context) -> tuple[str, ...]:
        ranks = self.allocate == TOLERANCE and context.plan is None
        return (self.criterion, *(self.rankings if ranks else ()))

    def _left(self, size: int) -> int:
        left = max(1, round((1 - self.sparsity) * size))
        if size < 4 * self.multiple or left == size:
            return left
        return min(size, max(self.multiple, round(left / self.multiple) * self.multiple))

    def _taking(self, criterion: str, asked: Entries) -> Taking:
        scored = criterion != OBS and asked.cuts
        orders: Orders = ranked(criterion, asked) if scored else {}
        return Taking(asked.dense, orders, self.refit, self.damp, asked.seed)

    def _allocated(self, asked: Entries, criterion: str, context: Context) -> list[Cut]:
        """Return the cuts with as many entries kept as `allocate` finds."""
        macs = _macs(asked.dense)
        places = {c.dimension: self._place(c, asked.couplings, macs) for c in asked.cuts}

        def removals(fitted: Calibration | None) -> Iterator[Removal]:
            taking = self._taking(criterion, asked._replace(calibration=fitted))
            return taking.removals(asked.cuts, places, fitted)

        def rankings(fitted: Calibration | None) -> list[tuple[np.ndarray, np.ndarray]]:
            known = asked._replace(calibration=fitted)
            one, other = (ranked(each, known) for each in self.rankings)
            return [(one[dimension], other[dimension]) for dimension in places]

        counts = share_out(
            self, list(places.values()), removals, rankings, asked.dense, context
        )
        removed = dict(zip(places, counts, strict=True))
        settled = [c._replace(kept=c.dimension.size - removed[c.dimension]) for c in asked.cuts]
        return [cut for cut in settled if cut.gone]

    def _place(self, cut: Cut, couplings: Couplings, macs: Mapping[str, float]) -> Place:
        """Describe a dimension, whose entries each save multiplications."""
        size = cut.dimension.size
        step = self.multiple if size >= 4 * self.multiple else 1
        where = couplings.places[cut.dimension]
        saves = sum(macs.get(name, 0.0) for name, _ in where) / size
        rows = sum(layer.outputs for layer in cut.layers)
        most = size - max(step, round(_LEAST * size))
        names = tuple(layer.name for layer in cut.layers)
        return Place(cut.names, size, most, step, saves, (rows, size), names)


def _macs(graph: Graph) -> dict[str, float]:
    """Return the multiplications that each weight tensor takes part in."""
    return {
        layer.weight.name: float(layer.positions * layer.weight.values.size)
        for layer in linear_layers(graph)
    }


def _removed(layer: Layer, cut: Cut) -> Note:
    size = cut.dimension.size
    return Note(layer.name, f"reads {cut.kept} of {size}: the others are removed")
