"""Take entries out of what layers read, as a criterion has them go, and refit those layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tilewright.calibration import Calibration
from tilewright.dimensions import Dimension
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.allocation import Removal
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.choose_entries import (
    cheapest_of,
    columns_of_entries,
    fits_of,
    readers,
    refit_without,
    zero_without,
)
from tilewright.passes.prune.probe import changed
from tilewright.passes.prune.refit import Fit, fit, seen_by
from tilewright.passes.prune.removable import Choice
from tilewright.protocol import Report
from tilewright.segments import Pair

Orders = Mapping[Dimension, np.ndarray]


@dataclass(frozen=True)
class Taking:
    """In which order entries go, and what becomes of the layers that read them.

    Where `orders` does not hold a dimension its entries are found by "obs". Without `refit`
    weights stay as they are but for what goes.
    """

    dense: Graph
    orders: Orders
    refit: bool
    damp: float
    seed: int

    def removals(
        self,
        choices: Sequence[Choice],
        places: Mapping[Dimension, Place],
        calibration: Calibration | None,
    ) -> Iterator[Removal]:
        """Yield what the constants are without entries of each dimension alone."""
        if calibration is None or not self._walks(choices):
            for choice in choices:
                without = partial(self._bare, choice, self.orders[choice.dimension])
                yield Removal(places[choice.dimension], without)
            return
        for choice, fits in fits_of(self.dense, choices, calibration, self.damp, self.seed):
            place = places[choice.dimension]
            order = self.orders.get(choice.dimension)
            if order is None:
                order = cheapest_of(choice, fits, {}, place.most)
            if self.refit:
                yield Removal(place, partial(self._refitted, choice, fits, order))
            else:
                yield Removal(place, partial(self._bare, choice, order))

    def taken(
        self,
        pruned: Graph,
        choices: Sequence[Choice],
        calibration: Calibration | None,
        report: Report,
    ) -> dict[Dimension, np.ndarray]:
        """Choose what goes, and refit each layer to what it gave in the dense network.

        What several layers read is chosen before any of them is refitted, in the dense
        network; what one reads when it is its turn. What goes is zero in `pruned` until all
        is chosen: both networks have one shape. Only without data, or where nothing is to be
        refitted or searched for, `pruned` stays as it is.
        """
        gone = {
            choice.dimension: self.orders[choice.dimension][: choice.gone]
            for choice in choices
            if choice.dimension in self.orders
        }
        if calibration is None or not self._walks(choices):
            return gone
        shared = [c for c in choices if c.dimension not in gone and len(c.layers) > 1]
        chosen = fits_of(self.dense, shared, calibration, self.damp, self.seed)
        for done, (choice, fits) in enumerate(chosen, 1):
            report(f"what {choice.names} read ({done} of {len(shared)})")
            before = columns_of_entries(shared, gone)
            gone[choice.dimension] = cheapest_of(choice, fits, before, choice.gone)
        pair = Pair(calibration, self.dense, seed=self.seed)
        uses = use_counts(pruned)
        layers = readers(pruned, choices)
        for done, layer in enumerate(layers, 1):
            report(f"{layer.name} ({done} of {len(layers)})")
            its = fit(layer, seen_by(layer, pair, pruned), self.damp, uses)
            for choice in choices:
                own = [reader.name for reader in choice.layers] == [layer.name]
                if own and choice.dimension not in gone:
                    before = columns_of_entries(choices, gone)
                    gone[choice.dimension] = cheapest_of(choice, [its], before, choice.gone)
            columns = columns_of_entries(choices, gone)[layer.name]
            if self.refit:
                refit_without(layer, its, uses, columns)
            else:
                zero_without(layer, columns)
        return gone

    def _walks(self, choices: Sequence[Choice]) -> bool:
        """Say whether layers must be looked at on examples, to search or to refit."""
        return self.refit or any(choice.dimension not in self.orders for choice in choices)

    def _refitted(
        self, choice: Choice, fits: Sequence[Fit], order: np.ndarray, count: int
    ) -> dict[str, np.ndarray]:
        graph = self.dense.edit()
        uses = use_counts(graph)
        mine = {layer.name: layer for layer in linear_layers(graph)}
        for layer, columns, its in zip(choice.layers, choice.columns, fits, strict=True):
            refit_without(mine[layer.name], its, uses, [columns[order[:count]]])
        return changed(self.dense, graph)

    def _bare(self, choice: Choice, order: np.ndarray, count: int) -> dict[str, np.ndarray]:
        graph = self.dense.edit()
        mine = {layer.name: layer for layer in linear_layers(graph)}
        for layer, columns in zip(choice.layers, choice.columns, strict=True):
            zero_without(mine[layer.name], [columns[order[:count]]])
        return changed(self.dense, graph)
