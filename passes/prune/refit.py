"""What a layer's weights become when some of its inputs or tiles go."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.calibration import CrossGram, Gram
from tilewright.columns import results
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune import obs
from tilewright.passes.prune.bias import bias_of, shift
from tilewright.passes.prune.joint import Problem
from tilewright.passes.prune.residual import joined_by
from tilewright.segments import Pair


class Seen(NamedTuple):
    """What layers read in the compressed network, and how it goes with the dense one's.

    `drifts` say so of the residual streams that their outputs are added to: how much more these
    are in the dense network, in units of the outputs, by the layers' names.
    """

    now: Gram
    cross: CrossGram
    drifts: Mapping[str, CrossGram]


def siblings(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Group layers that multiply the same matrix, in order."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(_input_matrix(layer), []).append(layer)
    return list(groups.values())


def seen_by(
    layers: Sequence[Layer], pair: Pair, compressed: Graph, uses: Mapping[str, int]
) -> Seen:
    """Gather what layers read that multiply one matrix. They must be asked for in order.

    `uses` is `use_counts`.
    """
    pair.advance(layers[0], compressed)
    joined = [(layer, added) for layer in layers if (added := joined_by(layer, uses))]
    joined = [(layer, added) for layer, added in joined if pair.knows(added.stream)]
    seen = Seen(Gram(), CrossGram(), {layer.name: CrossGram() for layer, _ in joined})
    streams = [pair.drift(added.stream) for _, added in joined]
    for (x, x_now, chosen), *away in zip(
        pair.columns(layers[0], compressed), *streams, strict=True
    ):
        seen.now.add(x_now)
        seen.cross.add(x, x_now)
        for (layer, added), drift in zip(joined, away, strict=True):
            lacking = results(layer.node, drift, chosen) / added.scale[:, None]
            seen.drifts[layer.name].add(lacking, x_now)
    return seen


class Fit(NamedTuple):
    """What a layer is to give: a problem for each group of a convolution, else one.

    `means` are those of the layer's inputs, in the dense and in the compressed network, and
    `lacking` is what the residual stream behind it lacks on average. All is known from as many
    `columns` of inputs; `damping` is what each problem's Hessian has on its diagonal for that.
    """

    problems: tuple[Problem, ...]
    means: tuple[np.ndarray, np.ndarray]
    lacking: np.ndarray
    columns: int
    damping: tuple[np.ndarray, ...]


def fit(layer: Layer, seen: Seen, damp: float, uses: Mapping[str, int]) -> Fit:
    """Return what a layer with its dense weights is to give.

    Targets are the dense weights that make up for errors in the layer's input. Where there is
    a bias all is centred, for it takes part as the weight of one more input, the constant 1.
    `uses` is `use_counts`. Raises UnusableInput where examples and `damp` are too few.
    """
    now, cross, drifts = seen
    gram, mixed = now.product, cross.product
    means, means_now = (total / now.columns for total in cross.sums)
    lacking, lacking_mean = np.zeros((layer.outputs, len(gram))), np.zeros(layer.outputs)
    if layer.name in drifts:
        drift = drifts[layer.name]
        lacking, lacking_mean = drift.product, drift.sums[0] / now.columns
    if bias_of(layer, uses) is not None:
        gram = gram - now.columns * np.outer(means_now, means_now)
        mixed = mixed - now.columns * np.outer(means, means_now)
        lacking = lacking - now.columns * np.outer(lacking_mean, means_now)
    problems, damping = [], []
    for rows, columns in _groups(layer):
        own, between = gram[columns, columns], mixed[columns, columns]
        hessian = obs.damped(own, damp)
        weights = layer.matrix()[rows].astype(np.float64)
        aims = weights @ between + lacking[rows, columns]
        try:
            target = obs.asymmetric_target(weights, aims, own, hessian)
        except np.linalg.LinAlgError as error:
            raise UnusableInput(
                f'The examples do not say what "{layer.name}" is to become: {now.columns} '
                f"positions of {len(own)} inputs leave some undetermined with damp={damp:g}. "
                f"Give more calibration samples, or a larger damp, such as {10 * damp:g}."
            ) from error
        problems.append(Problem(target, hessian))
        damping.append(np.diag(hessian) - np.diag(own))
    return Fit(tuple(problems), (means, means_now), lacking_mean, now.columns, tuple(damping))


def settle(
    layer: Layer, fitted: Fit, uses: Mapping[str, int], solved: Sequence[np.ndarray]
) -> None:
    """Give a layer the weights that solve its problems, and the bias that goes with them."""
    bias = bias_of(layer, uses)
    means, means_now = fitted.means
    before = _applied(layer, means) + fitted.lacking
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


def _input_matrix(layer: Layer) -> tuple[object, ...]:
    """Return what identifies the matrix X that a layer multiplies: equal for siblings."""
    if layer.node.op != "Conv":
        return (layer.source.name,)
    geometry = ("kernel_shape", "strides", "dilations", "pads", "auto_pad")
    attrs = [str(layer.node.attrs.get(key)) for key in geometry]
    return (layer.source.name, tuple(layer.weight.shape[1:]), *attrs)
