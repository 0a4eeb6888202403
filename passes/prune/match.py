"""Put outputs into an order in which tiles can be pruned with less harm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.calibration import Calibration, Gram
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, Extent, indices
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Tile
from tilewright.options import (
    check_below_one,
    check_count,
    check_name,
    check_positive,
    parsed,
)
from tilewright.passes.prune import matching, obs
from tilewright.passes.prune.bias import bias_of, use_counts
from tilewright.passes.prune.layouts import layouts_of
from tilewright.passes.prune.scoring import criteria_of
from tilewright.protocol import Context, Note, Outcome
from tilewright.removed import entries_of
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread


@dataclass(frozen=True)
class MatchTiles:
    """Reorder the outputs of layers that prune-tiles will prune, wherever they run.

    Rows that need the same inputs come into the same tiles. Hidden features, channels between
    convolutions, heads and their depths are permuted in all tensors that they run through, so
    the answers stay the same; where several layers write one dimension, one order serves them
    all. Outputs that callers see stay in order.

    The options are those of prune-tiles, and should say the same; so does a plan in the
    context. Without calibration data, or with criterion="magnitude", weights count by their
    squares, not by the error that their loss leaves after a refit.
    """

    sparsity: float = 0.6
    criterion: str = "obs"
    tile: str = ""
    damp: float = 0.05
    ends: bool = False
    smallest: int = 4096
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "match-tiles"
    source: ClassVar[str] = (
        'Ji et al., "TETRIS: TilE-matching the TRemendous Irregular Sparsity" (2018), with '
        "errors after a refit for magnitudes, and assignments for exchanges"
    )
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_below_one(self, "sparsity")
        check_name(self, "criterion", criteria_of(self.name))
        check_positive(self, "damp")
        check_count(self, "smallest")
        if self.tile:
            parsed(self, "tile", Tile.parse, 'outputs x inputs, such as "4x1"')

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Permute every dimension that has a better order."""
        dense = graph.edit().sorted()
        couplings = Couplings(dense)
        notes = list(couplings.notes)
        choices = self._choices(dense, context, notes)
        axes: dict[str, Extent] = {}
        movable: list[Layer] = []
        for layer in linear_layers(dense):
            if layer.name not in choices or layer.groups > 1:
                continue
            if context.target.gathers_rows(layer, context.precision):
                notes.append(Note(layer.name, "prune-tiles takes any rows of it together"))
                continue
            dimensions = couplings.dimension(layer.weight.name, layer.output_axis)
            if any(d in couplings.places for d in dimensions):
                movable.append(layer)
                axes[layer.name] = couplings.of(layer.weight)[layer.output_axis]
            else:
                reason = next((d.fixed for d in dimensions if d.fixed), "there is one")
                notes.append(Note(layer.name, f"its outputs stay in order: {reason}"))
        if not movable:
            return Outcome(dense, tuple(notes))
        places = self._places(dense, movable, choices, context)
        masses = {name: _mass(place) for name, place in places.items()}
        orders: dict[Dimension, list[int]] = {}
        for dimension in couplings.places:
            writers = [name for name, extent in axes.items() if _runs(dimension, extent)]
            found = _order(dimension, {n: axes[n] for n in writers}, places)
            if found is None:
                continue
            orders[dimension] = found.tolist()
            for name in writers:
                scores = places[name].scores[indices(axes[name], {dimension: found})]
                places[name] = places[name]._replace(scores=scores)
        notes += [_said(name, masses[name], _mass(place)) for name, place in places.items()]
        return Outcome(couplings.permute(orders) if orders else dense, tuple(notes))

    def _choices(
        self, graph: Graph, context: Context, notes: list[Note]
    ) -> dict[str, tuple[Tile, float]]:
        """Return what prune-tiles will take from each layer."""
        choices, dense = layouts_of(
            graph,
            context,
            self.sparsity,
            self.tile,
            ends=self.ends,
            smallest=self.smallest,
            grouped=False,
            skip=self.skip,
        )
        notes += dense
        return {
            name: (choice.layout, choice.sparsity)
            for name, choice in choices.items()
            if isinstance(choice.layout, Tile)
        }

    def _places(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        choices: Mapping[str, tuple[Tile, float]],
        context: Context,
    ) -> dict[str, matching.Rows]:
        """Return what each layer's rows are worth, row by row."""
        if context.calibration is None or self.criterion == "magnitude":
            diagonals = {layer.name: np.ones(layer.inputs) for layer in layers}
        else:
            with one_blas_thread():
                diagonals = self._diagonals(graph, layers, context.calibration, context)
        places = {}
        for layer in layers:
            tile, sparsity = choices[layer.name]
            scores = matching.weight_scores(layer.matrix(), diagonals[layer.name], tile.inputs)
            blocks = scores.shape[1]
            removed = obs.removed_of(blocks, sparsity)
            every = np.arange(layer.outputs)[:, None]
            places[layer.name] = matching.Rows(scores, every, tile.outputs, removed)
        return places

    def _diagonals(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        calibration: Calibration,
        context: Context,
    ) -> dict[str, np.ndarray]:
        """Return the diagonal of each layer's inverse Hessian, in the dense network."""
        pair = Pair(calibration, graph, seed=context.seed)
        uses = use_counts(graph)
        found = {}
        for done, layer in enumerate(layers, 1):
            context.report(f"match-tiles: {layer.name} ({done} of {len(layers)})")
            gram = Gram()
            for x, *_ in pair.columns(layer, graph):
                gram.add(x)
            product = gram.product
            if bias_of(layer, uses) is not None:
                product = product - np.outer(gram.sums, gram.sums) / gram.columns
            found[layer.name] = np.diag(np.linalg.inv(obs.damped(product, self.damp)))
        return found


def _runs(dimension: Dimension, extent: Extent) -> bool:
    gone = indices(extent, {dimension: np.arange(0)})
    return len(gone) < len(indices(extent, {}))


def _order(
    dimension: Dimension, axes: Mapping[str, Extent], places: Mapping[str, matching.Rows]
) -> np.ndarray | None:
    """Return a better order of a dimension for all layers that write it, or None."""
    ours = [places[name]._replace(at=entries_of(axes[name], dimension)) for name in axes]
    if not ours:
        return None
    found = matching.order(ours)
    return None if np.array_equal(found, np.arange(dimension.size)) else found


def _mass(place: matching.Rows) -> float:
    """Return the share of what a layer's weights are worth that goes with the tiles."""
    whole = float(place.scores.sum(dtype=np.float64)) or 1.0
    return matching.pruned_mass(place, np.arange(len(place.at))) / whole


def _said(name: str, before: float, after: float) -> Note:
    if after >= before:
        return Note(name, "its outputs stay in order: no better one was found")
    return Note(
        name,
        f"its outputs have another order: the tiles that go are {after:.1%} of what its "
        f"weights are worth, not {before:.1%}",
    )
