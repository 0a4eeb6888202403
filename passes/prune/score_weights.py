"""What criteria say of single weights, for tiles of any form.

Each is a matrix that takes the place of the weights' magnitudes: the tiles with the least
squared sums go.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Calibration, Gram
from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune.criteria import leverage
from tilewright.passes.prune.pseudo_labels import gradients
from tilewright.segments import Pair

_RIDGE = 0.01  # of the mean energy of inputs


class Weights(NamedTuple):
    """Layers whose weights are compared, none of them grouped, in order, and what is known."""

    dense: Graph
    layers: Sequence[Layer]
    calibration: Calibration | None
    seed: int


def magnitude(asked: Weights) -> dict[str, np.ndarray]:
    """Return the weights, by the layers' names."""
    return {layer.name: layer.matrix() for layer in asked.layers}


def taylor(asked: Weights) -> dict[str, np.ndarray]:
    """Return |w| times the root of the mean squared gradient.

    A tile's squared sum is that of the mean (w g)^2 of its weights: `criteria.taylor` of single
    weights, with the square as in the paper.
    """
    assert asked.calibration is not None
    squares = {layer.name: np.zeros(layer.matrix().shape) for layer in asked.layers}
    names = {str(layer.weight.name) for layer in asked.layers}
    count = 0
    for found in gradients(asked.dense, asked.calibration, names, asked.seed):
        count += 1
        for layer in asked.layers:
            squares[layer.name] += np.square(layer.as_matrix(found[layer.weight.name]))
    return {
        layer.name: np.abs(layer.matrix()) * np.sqrt(squares[layer.name] / count)
        for layer in asked.layers
    }


def columns_by_leverage(asked: Weights) -> dict[str, np.ndarray]:
    """Return the root of the leverage of each input, alike for all outputs.

    So the same columns of tiles go in every row.
    """
    assert asked.calibration is not None
    pair = Pair(asked.calibration, asked.dense, seed=asked.seed)
    found = {}
    for layer in asked.layers:
        gram = Gram()
        for x, *_ in pair.columns(layer, asked.dense):
            gram.add(x)
        scores = leverage(gram.product, ridge(gram.product))
        found[layer.name] = np.tile(np.sqrt(np.maximum(scores, 0)), (layer.outputs, 1))
    return found


def ridge(gram: np.ndarray) -> float:
    """Return `_RIDGE` of the mean of a Gram matrix's diagonal, or 1 where that is zero."""
    mean = _RIDGE * float(np.mean(np.diag(gram)))
    return mean if mean > 0 else 1.0


SCORES: Mapping[str, Callable[[Weights], dict[str, np.ndarray]]] = {
    "magnitude": magnitude,
    "taylor": taylor,
    "leverage": columns_by_leverage,
}
