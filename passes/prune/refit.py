"""What a layer's weights become when some of its inputs or tiles go."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.calibration import CrossGram, Gram
from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune import obs
from tilewright.passes.prune.bias import bias_of, shift
from tilewright.passes.prune.joint import Problem
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


class Fit(NamedTuple):
    """What a layer is to give: a problem for each group of a convolution, else one.

    `means` are those of the layer's inputs, in the dense and in the compressed network.
    """

    problems: tuple[Problem, ...]
    means: tuple[np.ndarray, np.ndarray]


def fit(layer: Layer, seen: Seen, damp: float, uses: Mapping[str, int]) -> Fit:
    """Return what a layer with its dense weights is to give.

    Targets are the dense weights that make up for errors in the layer's input. Where there is
    a bias all is centred, for it takes part as the weight of one more input, the constant 1.
    `uses` is `use_counts`.
    """
    now, cross = seen
    gram, mixed = now.product, cross.product
    means, means_now = (total / now.columns for total in cross.sums)
    if bias_of(layer, uses) is not None:
        gram = gram - now.columns * np.outer(means_now, means_now)
        mixed = mixed - now.columns * np.outer(means, means_now)
    problems = []
    for rows, columns in _groups(layer):
        own, between = gram[columns, columns], mixed[columns, columns]
        hessian = obs.damped(own, damp)
        weights = layer.matrix()[rows].astype(np.float64)
        target = obs.asymmetric_target(weights, between, own, hessian)
        problems.append(Problem(target, hessian))
    return Fit(tuple(problems), (means, means_now))


def settle(
    layer: Layer, fitted: Fit, uses: Mapping[str, int], solved: Sequence[np.ndarray]
) -> None:
    """Give a layer the weights that solve its problems, and the bias that goes with them."""
    bias = bias_of(layer, uses)
    means, means_now = fitted.means
    before = _applied(layer, means)
    layer.replace(np.concatenate(solved))
    if bias is not None:
        shift(bias, before - _applied(layer, means_now))


def _groups(layer: Layer) -> list[tuple[slice, slice]]:
    """Return which rows of the matrix read which of a layer's inputs."""
    outputs, inputs = layer.outputs // layer.groups, layer.inputs
    return [
        (slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs))
        for g in range(layer.groups)
    ]


def _applied(layer: Layer, x: np.ndarray) -> np.ndarray:
    """Return what a layer without its bias makes of one column."""
    matrix = layer.matrix().astype(np.float64)
    return np.concatenate([matrix[rows] @ x[columns] for rows, columns in _groups(layer)])
