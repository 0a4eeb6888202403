"""What a layer's weights become when some of its inputs or tiles go."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tilewright.calibration import CrossGram, Gram
from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune import obs
from tilewright.passes.prune.bias import bias_of, shift
from tilewright.segments import Pair


class Seen(NamedTuple):
    """What a layer reads in the compressed network, and how it goes with the dense one's."""

    now: Gram
    cross: CrossGram


def seen_by(layer: Layer, pair: Pair, compressed: Graph) -> Seen:
    """Gather what a layer reads. Layers must be asked for in order."""
    seen = Seen(Gram(), CrossGram())
    for x, x_now in pair.columns(layer, compressed):
        seen.now.add(x_now)
        seen.cross.add(x, x_now)
    return seen


def refit_layer(
    layer: Layer,
    seen: Seen,
    damp: float,
    uses: Mapping[str, int],
    solve: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    """Give a layer the weights that `solve` returns, and the bias that goes with them.

    `solve(target, hessian)` gets the dense weights that make up for errors in the layer's
    input (outputs, inputs), and the damped Hessian (inputs, inputs). Where there is a bias both
    are centred, for it takes part as the weight of one more input, the constant 1.
    """
    now, cross = seen
    bias = bias_of(layer, uses)
    gram, mixed = now.product, cross.product
    means, means_now = (total / now.columns for total in cross.sums)
    if bias is not None:
        gram = gram - now.columns * np.outer(means_now, means_now)
        mixed = mixed - now.columns * np.outer(means, means_now)
    hessian = obs.damped(gram, damp)
    matrix = layer.matrix().astype(np.float64)
    layer.replace(solve(obs.asymmetric_target(matrix, mixed, gram, hessian), hessian))
    if bias is not None:
        shift(bias, matrix @ means - layer.matrix() @ means_now)
