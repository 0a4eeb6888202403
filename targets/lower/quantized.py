"""Quantized tensors and layers: what QuantizeLinear and DequantizeLinear say about them."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import constant, is_constant
from tilewright.layers import Layer, layer_with, weighted_layer

_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # the least whose reciprocal is a float32
_SMALL = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True, eq=False)
class SmallWeights:
    """A layer's weights as int8 `matrix` (outputs, inputs) times `scales` (outputs,)."""

    matrix: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer of small weights on 8-bit activations: `scale` times (`source` minus `zero`)."""

    source: gs.Tensor
    scale: float
    zero: int
    weights: SmallWeights


def integer_layer(node: gs.Node) -> IntegerLayer | None:
    """Return a node as a layer on integers, or None where it is none."""
    left = None if weighted_layer(node) is None else _dequantizer(node.inputs[0])
    if left is None:
        return None
    source = left.inputs[0]
    if is_constant(source) or source.dtype not in _SMALL or not is_per_tensor(left):
        return None
    weights = small_weights(node)
    if weights is None:
        return None
    scale, zero = left.inputs[1].values.item(), zero_point(left).item()
    return IntegerLayer(source, scale, zero, weights)


def small_weights(node: gs.Node) -> SmallWeights | None:
    """Return a layer's weights where they are int8 with a scale a row, or None."""
    layer = weighted_layer(node)
    if layer is None or layer.groups > 1 or layer.weight.dtype != np.int8:
        return None
    right = _dequantizer(node.inputs[1])
    if right is None or _zeros(right).any():
        return None
    scales = right.inputs[1].values.astype(np.float32)
    axis = int(right.attrs.get("axis", 1)) % len(layer.weight.shape)
    if scales.size > 1 and axis != layer.output_axis:
        return None
    scales = scales.reshape(-1) * np.float32(node.attrs.get("alpha", 1.0))
    return SmallWeights(layer.matrix(), np.broadcast_to(scales, (layer.outputs,)))


def lowered_layer(node: gs.Node) -> Layer | None:
    """Return a layer as float kernels run it: quantized weights are taken as numbers."""
    layer = weighted_layer(node)
    if layer is None or not layer.is_quantized:
        return layer
    dequantizer = _dequantizer(node.inputs[1])
    if dequantizer is None:
        return None
    return layer_with(node, constant(node.inputs[1].name, dequantized(dequantizer)))


def dequantized(node: gs.Node) -> np.ndarray:
    """Return what a DequantizeLinear of constants computes."""
    values = node.inputs[0].values
    axis = int(node.attrs.get("axis", 1)) % max(values.ndim, 1)

    def spread(parameter: np.ndarray, dtype: type) -> np.ndarray:
        shape = [-1 if a == axis and parameter.size > 1 else 1 for a in range(values.ndim)]
        return parameter.astype(dtype).reshape(shape)

    wide = values.astype(np.int32) - spread(_zeros(node), np.int32)
    product: np.ndarray = wide.astype(np.float32) * spread(node.inputs[1].values, np.float32)
    return product


def can_wait(node: gs.Node) -> bool:
    """Say whether a node is a DequantizeLinear that its readers can compute for themselves."""
    if node.op != "DequantizeLinear" or "block_size" in node.attrs:
        return False
    if not all(is_constant(t) for t in node.inputs[1:] if t.name):
        return False
    if is_constant(node.inputs[0]):
        return bool(node.inputs[1].dtype == np.float32)
    return is_per_tensor(node)


def is_per_tensor(node: gs.Node) -> bool:
    """Say whether a quantizer has one constant float32 scale and 8-bit integers."""
    small = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    scale, *zero = node.inputs[1:]
    return (
        is_constant(scale)
        and scale.values.size == 1
        and scale.dtype == np.float32
        and scale.values.item() >= _LEAST_SCALE
        and small.dtype in _SMALL
        and all(is_constant(t) for t in zero if t.name)
    )


def zero_point(node: gs.Node) -> np.ndarray:
    """Return a per-tensor quantizer's zero point as an array of one 8-bit integer."""
    return _zeros(node).reshape(-1)[:1]


def _zeros(node: gs.Node) -> np.ndarray:
    if len(node.inputs) > 2 and node.inputs[2].name:
        values: np.ndarray = node.inputs[2].values
        return values
    small = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    return np.zeros(1, small.dtype or np.uint8)


def _dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    producer = tensor.inputs[0] if tensor.inputs else None
    return producer if producer is not None and can_wait(producer) else None
