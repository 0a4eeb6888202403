"""Which entries go in each cut, in view of what all its layers read."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tilewright.calibration import Calibration
from tilewright.dimensions import Dimension
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.joint import cheapest_entries, reading
from tilewright.passes.prune.probe import changed
from tilewright.passes.prune.refit import Fit, fit, seen_by, settle
from tilewright.passes.prune.removable import Cut
from tilewright.segments import Pair

# The columns of each layer's matrix that have gone, by its name.
Gone = Mapping[str, Sequence[np.ndarray]]


def fits_of(
    dense: Graph, cuts: Sequence[Cut], calibration: Calibration, damp: float, seed: int
) -> Iterator[tuple[Cut, list[Fit]]]:
    """Yield each cut with what its layers give in the dense network, once all are known.

    No more is held than what the cuts to come need.
    """
    pair = Pair(calibration, dense, seed=seed)
    uses = use_counts(dense)
    fits: dict[str, Fit] = {}
    waiting = {cut.dimension: cut for cut in cuts}
    for layer in readers(dense, cuts):
        fits[layer.name] = fit(layer, seen_by([layer], pair, dense, uses), damp, uses)
        for cut in list(waiting.values()):
            if all(its.name in fits for its in cut.layers):
                del waiting[cut.dimension]
                yield cut, [fits[its.name] for its in cut.layers]
        needed = {its.name for cut in waiting.values() for its in cut.layers}
        fits = {name: its for name, its in fits.items() if name in needed}


def cheapest_of(cut: Cut, fits: Sequence[Fit], gone: Gone, count: int) -> np.ndarray:
    """Return the entries that hurt least, in the order in which they go.

    What a layer loses counts relative to all that it gives. `gone` are columns that the layers
    have lost already.
    """
    readings = []
    for layer, columns, fitted in zip(cut.layers, cut.columns, fits, strict=True):
        share = 1 / max(sum(problem.energy() for problem in fitted.problems), 1e-30)
        for problem in fitted.problems:
            alive = without(gone.get(layer.name, ()), len(problem.hessian))
            readings.append(reading(problem, columns, alive, share))
    return cheapest_entries(readings, cut.dimension.size, count)


def without(gone: Sequence[np.ndarray], inputs: int) -> np.ndarray:
    """Return the columns of a matrix that are not gone, as a mask."""
    left = np.ones(inputs, dtype=bool)
    for columns in gone:
        left[columns] = False
    return left


def zero_without(layer: Layer, gone: Sequence[np.ndarray]) -> None:
    """Leave a layer's weights as they are but for zeros in some columns."""
    matrix = layer.matrix().copy()
    for columns in gone:
        matrix[:, columns] = 0
    layer.replace(matrix)


def without_columns(
    dense: Graph, gone: Gone, fit_of: Callable[[str], Fit | None]
) -> dict[str, np.ndarray]:
    """Return the constants that are others once layers have lost columns.

    Layers are refitted to what `fit_of` says of them by name, where it says something.
    """
    graph = dense.edit()
    uses = use_counts(graph)
    for layer in linear_layers(graph):
        if layer.name not in gone:
            continue
        its = fit_of(layer.name)
        if its is None:
            zero_without(layer, gone[layer.name])
        else:
            left = without(gone[layer.name], layer.inputs)
            settle(layer, its, uses, [problem.refitted(left) for problem in its.problems])
    return changed(dense, graph)


def readers(graph: Graph, cuts: Sequence[Cut]) -> list[Layer]:
    """Return the layers that read any of the cuts, in order."""
    names = {layer.name for cut in cuts for layer in cut.layers}
    return [layer for layer in linear_layers(graph) if layer.name in names]


def columns_of_entries(
    cuts: Sequence[Cut], entries: Mapping[Dimension, np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Return the columns of each layer that go with entries of the cuts."""
    found: dict[str, list[np.ndarray]] = {}
    for cut in cuts:
        for layer, columns in zip(cut.layers, cut.columns, strict=True):
            taken = columns[entries.get(cut.dimension, np.array([], np.int64))]
            found.setdefault(layer.name, []).append(taken)
    return found
