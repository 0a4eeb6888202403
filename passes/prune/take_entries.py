"""Take entries out of what layers read, as a criterion has them go, and refit those layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tilewright.calibration import Calibration
from tilewright.dimensions import Dimension
from tilewright.graph import Graph
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.choose_entries import (
    cheapest_of,
    columns_of_entries,
    fits_of,
    readers,
    without,
    without_columns,
    zero_without,
)
from tilewright.passes.prune.descent import Rows, settle_before_activation
from tilewright.passes.prune.question import Removal
from tilewright.passes.prune.refit import Fit, fit, seen_by
from tilewright.passes.prune.removable import Cut
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
        cuts: Sequence[Cut],
        places: Mapping[Dimension, Place],
        calibration: Calibration | None,
    ) -> Iterator[Removal]:
        """Yield what the constants are without entries of each dimension alone."""
        if calibration is None or not self._walks(cuts):
            for cut in cuts:
                yield self._removal(cut, places[cut.dimension], self.orders[cut.dimension], {})
            return
        for cut, fits in fits_of(self.dense, cuts, calibration, self.damp, self.seed):
            place = places[cut.dimension]
            order = self.orders.get(cut.dimension)
            if order is None:
                order = cheapest_of(cut, fits, {}, place.most)
            named = {its.name: each for its, each in zip(cut.layers, fits, strict=True)}
            yield self._removal(cut, place, order, named if self.refit else {})

    def taken(
        self,
        pruned: Graph,
        cuts: Sequence[Cut],
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
            cut.dimension: self.orders[cut.dimension][: cut.gone]
            for cut in cuts
            if cut.dimension in self.orders
        }
        if calibration is None or not self._walks(cuts):
            return gone
        shared = [c for c in cuts if c.dimension not in gone and len(c.layers) > 1]
        chosen = fits_of(self.dense, shared, calibration, self.damp, self.seed)
        for done, (cut, fits) in enumerate(chosen, 1):
            report(f"what {cut.names} read ({done} of {len(shared)})")
            before = columns_of_entries(shared, gone)
            gone[cut.dimension] = cheapest_of(cut, fits, before, cut.gone)
        pair = Pair(calibration, self.dense, seed=self.seed)
        uses = use_counts(pruned)
        layers = readers(pruned, cuts)
        for done, layer in enumerate(layers, 1):
            report(f"{layer.name} ({done} of {len(layers)})")
            its = fit(layer, seen_by([layer], pair, pruned, uses), self.damp, uses)
            for cut in cuts:
                own = [reader.name for reader in cut.layers] == [layer.name]
                if own and cut.dimension not in gone:
                    before = columns_of_entries(cuts, gone)
                    gone[cut.dimension] = cheapest_of(cut, [its], before, cut.gone)
            columns = columns_of_entries(cuts, gone)[layer.name]
            if self.refit:
                left = without(columns, layer.inputs)
                settle_before_activation(
                    layer,
                    its,
                    uses,
                    [problem.refitted(left) for problem in its.problems],
                    [Rows(np.arange(layer.outputs), np.flatnonzero(left))],
                    partial(pair.columns, layer, pruned),
                    pruned,
                )
            else:
                zero_without(layer, columns)
        return gone

    def _walks(self, cuts: Sequence[Cut]) -> bool:
        """Say whether layers must be looked at on examples, to search or to refit."""
        return self.refit or any(cut.dimension not in self.orders for cut in cuts)

    def _removal(
        self, cut: Cut, place: Place, order: np.ndarray, fits: Mapping[str, Fit]
    ) -> Removal:
        layers = zip(cut.layers, cut.columns, strict=True)
        columns = {layer.name: its[order] for layer, its in layers}

        def without(count: int) -> dict[str, np.ndarray]:
            gone = {name: [its[:count]] for name, its in columns.items()}
            return without_columns(self.dense, gone, fits.get)

        return Removal(place, without, columns=columns, fits=fits)
