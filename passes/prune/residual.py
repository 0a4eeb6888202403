"""Where what a layer gives meets a residual stream."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tilewright.graph import is_constant, static_shape
from tilewright.layers import Layer


class Joined(NamedTuple):
    """A layer's output, times `scale` (outputs,), is added to the tensor `stream`."""

    stream: str
    scale: np.ndarray


def joined_by(layer: Layer, uses: Mapping[str, int]) -> Joined | None:
    """Return the stream that a layer's output is added to, perhaps after biases and scales.

    None where it goes elsewhere, or to more than one place, such as the answers. `uses` is
    `use_counts`.
    """
    out, scale = layer.node.outputs[0], np.ones(layer.outputs)
    shape = static_shape(out)
    while shape and uses[out.name] == 1 and out.outputs and out.outputs[0].op in ("Add", "Mul"):
        node = out.outputs[0]
        others = [tensor for tensor in node.inputs if tensor is not out]
        if len(others) != 1 or static_shape(node.outputs[0]) != shape:
            return None
        (other,) = others
        if node.op == "Add" and not is_constant(other):
            return Joined(str(other.name), scale) if static_shape(other) == shape else None
        if not is_constant(other):
            return None
        if node.op == "Mul":
            feature_axis = 1 if layer.node.op == "Conv" else len(shape) - 1
            factors = _by_feature(other.values, len(shape), feature_axis)
            if factors is None or not factors.all():
                return None
            scale = scale * factors
        out = node.outputs[0]
    return None


def _by_feature(values: np.ndarray, rank: int, axis: int) -> np.ndarray | None:
    """Return a constant's values along one axis of what it is broadcast to, if no others."""
    if values.ndim > rank:
        return None
    whole = values.reshape([1] * (rank - values.ndim) + list(values.shape))
    return whole.reshape(-1) if whole.size == whole.shape[axis] else None
