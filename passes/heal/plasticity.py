"""Plasticity: how well a network recovers from what was pruned, place by place, rate by rate.

What a place costs at once says little where training follows: some errors heal, others stay.
What is left of them after some healing can serve an allocator instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Tile
from tilewright.passes.heal.align import Heal
from tilewright.passes.heal.training import examples
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.obs import smallest_tiles, spread
from tilewright.passes.prune.probe import HELD_OUT, Probe
from tilewright.protocol import Context, silent

# Prunes a share of one place of an edited graph.
Pruning = Callable[[Graph, float], None]


@dataclass(frozen=True, eq=False)
class Plasticity:
    """Errors of the answers with one of `places` pruned at one of `rates`, (places, rates).

    Rates rise. Errors are squared, relative to how far the dense answers vary, on calibration
    samples that nothing was fitted to: `at_once` after pruning, `healed` after some training.
    """

    places: tuple[str, ...]
    rates: tuple[float, ...]
    at_once: np.ndarray
    healed: np.ndarray

    @property
    def recovered(self) -> np.ndarray:
        """Share of the error that healing took away, negative where it did harm."""
        return np.asarray(1 - self.healed / np.maximum(self.at_once, 1e-30))

    def costs(self, places: Sequence[Place]) -> list[np.ndarray]:
        """Return the healed error without the first 1, 2, ... entries of each place.

        They go as far as the greatest rate, interpolated between the rates and never falling:
        the costs that `allocate.threshold` takes. Places are met by name.
        """
        return [
            _interpolated(self.healed[self.places.index(place.name)], self.rates, place)
            for place in places
        ]


def plasticity(
    graph: Graph,
    prunings: Mapping[str, Pruning],
    rates: Sequence[float],
    healing: Heal,
    context: Context,
) -> Plasticity:
    """Prune each place at each rate, the rest being as in `graph`; heal and compare answers.

    The answers of `context.dense`, or of `graph` where there is none, are what is healed
    towards and compared with. One calibration sample in four judges, the others are trained
    on, always from `graph` on and with the same seed. Rates must rise.

    Raises UnusableInput without calibration data or torch, where there is no gradient through
    the network and where its answers are no finite floats. Liu et al., "Sparse Training via
    Boosting Pruning Plasticity with Neuroregeneration" (2021), measure accuracy, and prune all
    layers at once; a place may be all layers.
    """
    fitted, held = examples(healing, context).held_out(HELD_OUT)
    dense = context.dense or graph
    probe = Probe(dense, held)
    known = replace(context, calibration=fitted, dense=dense, unfinished=None, report=silent)
    errors = np.empty((2, len(prunings), len(rates)))
    for row, (name, prune) in enumerate(prunings.items()):
        for column, rate in enumerate(rates):
            context.report(f"plasticity: {name} at {rate:.0%}")
            pruned = graph.edit()
            prune(pruned, rate)
            errors[0, row, column] = probe.error(pruned)
            errors[1, row, column] = probe.error(healing(pruned, known).graph)
    return Plasticity(tuple(prunings), tuple(rates), *errors)


def without_smallest_tiles(name: str, tile: Tile) -> Pruning:
    """Return what drops a share of each row of tiles of the layer called `name`."""

    def prune(graph: Graph, rate: float) -> None:
        (layer,) = (found for found in linear_layers(graph) if found.name == name)
        matrix = layer.matrix()
        kept = spread(smallest_tiles(matrix, tile, rate), tile, matrix.shape)
        layer.replace(np.where(kept, matrix, 0))

    return prune


def _interpolated(errors: np.ndarray, rates: Sequence[float], place: Place) -> np.ndarray:
    counts = [round(rate * place.entries) for rate in rates]
    rising = np.maximum.accumulate([0.0, *errors])
    return np.interp(np.arange(1, min(counts[-1], place.most) + 1), [0, *counts], rising)
