"""Remove channels, hidden features and heads for good, and refit what reads them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.allocation import (
    ALLOCATORS,
    NAMES,
    UNIFORM,
    Question,
    Removal,
    check_allocation,
)
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.choose_entries import (
    cheapest_of,
    columns_of_entries,
    fits_of,
    readers,
    refit_without,
    smallest_of,
)
from tilewright.passes.prune.probe import HELD_OUT, changed
from tilewright.passes.prune.refit import Fit, fit, seen_by
from tilewright.passes.prune.removable import Choice, planned, removable, stays
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread

_LEAST = 0.2  # of a dimension's entries, which stay in any case


@dataclass(frozen=True)
class PruneChannels:
    """Remove entries of the dimensions that layers add up over.

    Such are the channels between layers, residual streams, the hidden features of a perceptron
    and the heads of attention, wherever they run through normalizations, depthwise
    convolutions, reshapes and gates. Their weights are taken out, so the model is smaller and
    faster everywhere.

    With allocate="uniform" each dimension loses the share `sparsity` of its entries. The others
    are those of prune-tiles, such as "global": each loses what together moves the network's
    answers least (probe.py), until `sparsity` of the multiplications that all their entries
    stand for is saved.

    With calibration data the entries that hurt least are found by "obs": greedy elimination
    of column blocks of the layers that read them (joint.py), which are then refitted to the
    dense network's outputs, on what the already pruned network gives them. Without data, or
    with criterion="magnitude", those with the smallest squared sums of weights go, and nothing
    is refitted.

    What is kept is a multiple of `multiple`, where there is much more than that. What the last
    layer reads stays (`ends`), as do dimensions whose entries hold fewer than `smallest`
    weights in all, those read by layers named in `skip`, and those that a normalization
    averages over or callers see. A plan in the context says instead, for layers by name, which
    share "channels" of what they read goes, to the entry (removable.py).
    """

    sparsity: float = 0.3
    criterion: str = "obs"
    allocate: str = UNIFORM
    floor: float = 0.97
    multiple: int = 8
    damp: float = 0.01
    ends: bool = False
    smallest: int = 4096
    skip: tuple[str, ...] = ()

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
        if not 0 <= self.sparsity < 1:
            raise _wrong("sparsity", self.sparsity, "a share of at least 0 and below 1")
        if self.criterion not in ("obs", "magnitude"):
            raise _wrong("criterion", self.criterion, '"obs" or "magnitude"')
        if self.allocate not in NAMES:
            raise _wrong("allocate", self.allocate, f"one of {', '.join(NAMES)}")
        if not 0 <= self.floor <= 1:
            raise _wrong("floor", self.floor, "a share from 0 to 1, such as 0.97")
        if self.multiple < 1:
            raise _wrong("multiple", self.multiple, "a whole number from 1 on")
        if not 0 < self.damp < np.inf:
            raise _wrong("damp", self.damp, "a positive number")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Remove what every choice leaves out.

        Raises UnusableInput where allocate="global" has nothing to measure answers on, and
        where a plan asks for what cannot be.
        """
        check_allocation(self.name, self.allocate, self.criterion, context)
        dense = graph.edit().sorted()
        pruned = dense.edit()
        couplings = Couplings(pruned)
        if context.plan is not None:
            found = removable(pruned, couplings, ends=True, smallest=0, skip=())
            choices = planned(context.plan, pruned, couplings, found)
        else:
            found = removable(
                pruned, couplings, ends=self.ends, smallest=self.smallest, skip=self.skip
            ).without_overlaps()
            choices = [c._replace(kept=self._left(c.dimension.size)) for c in found.choices]
            choices = [choice for choice in choices if choice.gone]
        notes = [*couplings.notes, *stays(couplings, found.reasons)]
        calibration = context.calibration
        if calibration is None and self.criterion == "obs" and choices:
            notes += self._warned(context, choices)
        if calibration is None or self.criterion == "magnitude":
            gone = {choice.dimension: smallest_of(choice) for choice in choices}
        else:
            with one_blas_thread():
                if self.allocate != UNIFORM and context.plan is None:
                    choices = self._allocated(dense, couplings, choices, context, calibration)
                gone = self._refit(dense, pruned, choices, context, calibration)
        notes += [_removed(layer, choice) for choice in choices for layer in choice.layers]
        kept = {
            dimension: np.setdiff1d(np.arange(dimension.size), entries).tolist()
            for dimension, entries in gone.items()
        }
        return Outcome(couplings.select(kept) if kept else pruned, tuple(notes))

    def _warned(self, context: Context, choices: Sequence[Choice]) -> list[Note]:
        reason = (
            "its inputs are chosen by magnitude, not refitted: there is no calibration data"
        )
        context.report(
            "prune-channels: no calibration data, so channels are chosen by magnitude and "
            "nothing is refitted; expect the answers to change a lot. Give --calibration "
            "FILE.npz."
        )
        return [Note(layer.name, reason) for choice in choices for layer in choice.layers]

    def _left(self, size: int) -> int:
        left = max(1, round((1 - self.sparsity) * size))
        if size < 4 * self.multiple or left == size:
            return left
        return max(self.multiple, round(left / self.multiple) * self.multiple)

    def _allocated(
        self,
        dense: Graph,
        couplings: Couplings,
        choices: Sequence[Choice],
        context: Context,
        calibration: Calibration,
    ) -> list[Choice]:
        """Return the choices with as many entries kept as `allocate` finds."""
        fitted, held = calibration.held_out(HELD_OUT)
        macs = _macs(dense)
        places = {c.dimension: self._place(c, couplings, macs) for c in choices}

        def removals() -> Iterator[Removal]:
            for choice, fits in fits_of(dense, choices, fitted, self.damp, context.seed):
                place = places[choice.dimension]
                order = cheapest_of(choice, fits, {}, place.most)
                yield Removal(place, partial(_without, dense, choice, fits, order))

        question = Question(
            list(places.values()),
            removals,
            dense,
            held,
            self.sparsity,
            self.floor,
            lambda text: context.report(f"prune-channels: {text}"),
        )
        removed = dict(zip(places, ALLOCATORS[self.allocate](question), strict=True))
        settled = [c._replace(kept=c.dimension.size - removed[c.dimension]) for c in choices]
        return [choice for choice in settled if choice.gone]

    def _place(self, choice: Choice, couplings: Couplings, macs: Mapping[str, float]) -> Place:
        """Describe a dimension, whose entries each save multiplications."""
        size = choice.dimension.size
        step = self.multiple if size >= 4 * self.multiple else 1
        where = couplings.places[choice.dimension]
        saves = sum(macs.get(name, 0.0) for name, _ in where) / size
        rows = sum(layer.outputs for layer in choice.layers)
        most = size - max(step, round(_LEAST * size))
        return Place(choice.names, size, most, step, saves, (rows, size))

    def _refit(
        self,
        dense: Graph,
        pruned: Graph,
        choices: Sequence[Choice],
        context: Context,
        calibration: Calibration,
    ) -> dict[Dimension, np.ndarray]:
        """Choose what goes, and refit each layer to what it gave in the dense network.

        What several layers read is chosen before any of them is refitted, in the dense
        network; what one reads when it is its turn. What goes is zero in `pruned` until all
        is chosen: both networks have one shape.
        """
        shared = [choice for choice in choices if len(choice.layers) > 1]
        gone: dict[Dimension, np.ndarray] = {}
        for choice, fits in fits_of(dense, shared, calibration, self.damp, context.seed):
            context.report(
                f"prune-channels: what {choice.names} read ({len(gone) + 1} of {len(shared)})"
            )
            before = columns_of_entries(shared, gone)
            gone[choice.dimension] = cheapest_of(choice, fits, before, choice.gone)
        pair = Pair(calibration, dense, seed=context.seed)
        uses = use_counts(pruned)
        layers = readers(pruned, choices)
        for done, layer in enumerate(layers, 1):
            context.report(f"prune-channels: {layer.name} ({done} of {len(layers)})")
            its = fit(layer, seen_by(layer, pair, pruned), self.damp, uses)
            for choice in choices:
                if [reader.name for reader in choice.layers] == [layer.name]:
                    before = columns_of_entries(choices, gone)
                    gone[choice.dimension] = cheapest_of(choice, [its], before, choice.gone)
            refit_without(layer, its, uses, columns_of_entries(choices, gone)[layer.name])
        return gone


def _without(
    dense: Graph, choice: Choice, fits: Sequence[Fit], order: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """Return the constants of the layers that read a dimension, without some of its entries."""
    graph = dense.edit()
    uses = use_counts(graph)
    mine = {layer.name: layer for layer in linear_layers(graph)}
    for layer, columns, its in zip(choice.layers, choice.columns, fits, strict=True):
        refit_without(mine[layer.name], its, uses, [columns[order[:count]]])
    return changed(dense, graph)


def _macs(graph: Graph) -> dict[str, float]:
    """Return the multiplications that each weight tensor takes part in."""
    return {
        layer.weight.name: float(layer.positions * layer.weight.values.size)
        for layer in linear_layers(graph)
    }


def _removed(layer: Layer, choice: Choice) -> Note:
    size = choice.dimension.size
    return Note(layer.name, f"reads {choice.kept} of {size}: the others are removed")


def _wrong(option: str, value: object, wanted: str) -> UnusableInput:
    return UnusableInput(f"prune-channels: {option} is {value}, but must be {wanted}.")
