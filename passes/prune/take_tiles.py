"""Take tiles out of layers, as a criterion has them go, and refit what is left."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Layout, Tile
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.choose_tiles import (
    Choice,
    Support,
    by_loss,
    by_magnitude,
    drop_smallest,
    eliminated,
)
from tilewright.passes.prune.descent import settle_before_activation
from tilewright.passes.prune.probe import changed
from tilewright.passes.prune.question import Part, Removal
from tilewright.passes.prune.refit import Fit, fit, seen_by, settle, siblings
from tilewright.protocol import Report
from tilewright.segments import Pair

_MOST = 0.9  # of a layer's tiles that may go
_STEPS = 32  # in which tiles go, of all
_ROWS_OF_TILES = 32  # that are probed, where a layer has more


@dataclass(frozen=True)
class TakingTiles:
    """Which tiles go, and what becomes of the layers that lose them.

    Where there are no `magnitudes` of a layer its tiles are found by "obs", `rows` by rows or
    globally. Without `refit` weights stay as they are but for what goes. What removing tiles
    of a layer alone does is known without a look behind activations, which takes far longer.
    """

    dense: Graph
    magnitudes: Mapping[str, np.ndarray]
    rows: str
    refit: bool
    damp: float
    seed: int

    def removals(
        self,
        layers: Sequence[Layer],
        choices: Mapping[str, Choice],
        places: Mapping[str, Place],
        calibration: Calibration,
    ) -> Iterator[Removal]:
        """Yield what the constants are without tiles of each layer alone."""
        pair = Pair(calibration, self.dense, seed=self.seed)
        uses = use_counts(self.dense)
        dense = {layer.name: layer for layer in linear_layers(self.dense)}
        for members in siblings(layers):
            walks = self._walks(members)
            seen = seen_by(members, pair, self.dense, uses) if walks else None
            for name in (layer.name for layer in members):
                fitted = seen and fit(dense[name], seen, self.damp, uses)
                yield self._removal(dense[name], choices[name], places[name], fitted)

    def take(
        self,
        pruned: Graph,
        layers: Sequence[Layer],
        choices: Mapping[str, Choice],
        calibration: Calibration | None,
        report: Report,
    ) -> None:
        """Prune layers of `pruned`, in order, and refit each to what it gave in the dense one.

        Each sees what the layers before it, which are pruned already, give it.
        """
        if calibration is None or not self._walks(layers):
            for layer in layers:
                drop_smallest(layer, self.magnitudes[layer.name], choices[layer.name])
            return
        pair = Pair(calibration, self.dense, seed=self.seed)
        uses = use_counts(pruned)
        done = 0
        for members in siblings(layers):
            done += len(members)
            report(f"{members[-1].name} ({done} of {len(layers)})")
            seen = seen_by(members, pair, pruned, uses)
            for layer in members:
                fitted = fit(layer, seen, self.damp, uses)
                support = self._support(layer, choices[layer.name], fitted)
                if not self.refit:
                    layer.replace(support.masked(layer.matrix()))
                    continue
                solved = [support.refitted(problem) for problem in fitted.problems]
                settle_before_activation(
                    layer,
                    fitted,
                    uses,
                    solved,
                    support.rows(layer.inputs),
                    # Siblings read the same, and networks are not walked further for them.
                    partial(pair.columns, members[0], pruned),
                    pruned,
                )

    def _walks(self, layers: Sequence[Layer]) -> bool:
        """Say whether layers must be looked at on examples, to search or to refit."""
        return self.refit or any(layer.name not in self.magnitudes for layer in layers)

    def _removal(
        self, layer: Layer, choice: Choice, place: Place, fitted: Fit | None
    ) -> Removal:
        """Return what the constants are without columns of tiles of one layer."""
        if fitted is None or layer.name in self.magnitudes:
            magnitudes = self.magnitudes[layer.name]

            def smallest(sparsity: float) -> Support:
                return by_magnitude(magnitudes, choice._replace(sparsity=sparsity), layer.taps)

            return Removal(place, partial(self._without, layer.name, place, fitted, smallest))
        (problem,) = fitted.problems
        # Which tiles go is found once for all counts, and only if it is asked.
        choose = functools.cache(
            partial(eliminated, problem, choice, self.rows, place.most / place.entries)
        )
        without = partial(self._without, layer.name, place, fitted)

        def part() -> Part:
            some = choose(_ROWS_OF_TILES)
            losses = some.losses() if self.refit else None
            return Part(partial(without, some.support), some.worth, losses)

        return Removal(place, partial(without, lambda s: choose().support(s)), part=part)

    def _without(
        self,
        name: str,
        place: Place,
        fitted: Fit | None,
        support: Callable[[float], Support],
        count: int,
    ) -> dict[str, np.ndarray]:
        """Return the constants of one layer without so many of its columns of tiles."""
        graph = self.dense.edit()
        (layer,) = (layer for layer in linear_layers(graph) if layer.name == name)
        left = support(count / place.entries)
        if fitted is not None and self.refit:
            solved = [left.refitted(problem) for problem in fitted.problems]
            settle(layer, fitted, use_counts(graph), solved)
        else:
            layer.replace(left.masked(layer.matrix()))
        return changed(self.dense, graph)

    def _support(self, layer: Layer, choice: Choice, fitted: Fit) -> Support:
        (problem,) = fitted.problems
        if layer.name in self.magnitudes:
            return by_magnitude(self.magnitudes[layer.name], choice, layer.taps)
        return by_loss(problem, choice, layer.taps, self.rows)


def place_of(layer: Layer, layout: Layout) -> Place:
    """Describe a layer's columns of tiles; each saves multiplications."""
    assert isinstance(layout, Tile), "a pattern leaves nothing to allocate"
    blocks = layout.grid((layer.outputs, layer.inputs))[1]
    saves = layer.positions * layer.weight.values.size / blocks
    step = max(1, blocks // _STEPS)
    shape = (layer.outputs, *layer.weight.shape[2:], layer.inputs // layer.taps)
    return Place(layer.name, blocks, int(_MOST * blocks), step, saves, shape, (layer.name,))
