"""What operators read: int8 tensors, the weights of layers, and other constants."""

from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant
from tilewright.targets.lower.quantized import dequantized

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Refused(Exception):
    """What the device does not run; the message says why, as part of a sentence."""


class Small(NamedTuple):
    """An int8 tensor and the floats it stands for: `scale` times (value minus `zero`)."""

    tensor: gs.Tensor
    scale: float
    zero: int


class Weights(NamedTuple):
    """Constant int8 `values`, times `scales`: one, or one for each index along `axis`."""

    values: np.ndarray
    scales: np.ndarray
    axis: int


Operand = Small | Weights | np.ndarray | None


def small_of(node: gs.Node, tensor: gs.Tensor) -> Small:
    """Return a quantizer's or dequantizer's integers. Raises Refused for what is no int8."""
    scale = node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if tensor.dtype != np.int8:
        raise Refused(f"{tensor.name} is not int8")
    if not is_constant(scale) or scale.values.size != 1 or scale.dtype != np.float32:
        raise Refused(f"{tensor.name} has no single constant scale")
    if zero is not None and not is_constant(zero):
        raise Refused(f"the zero point of {tensor.name} is not constant")
    if not 0 < scale.values.item() < np.inf:
        raise Refused(f"the scale of {tensor.name} is {scale.values.item()}")
    return Small(tensor, scale.values.item(), 0 if zero is None else zero.values.item())


def operands_of(root: gs.Node) -> tuple[Operand, ...]:
    """Return what an operator reads; what a layer multiplies by stays integers."""
    return tuple(
        (index == 1 and root.op in _LAYERS and _weights(tensor)) or operand_of(tensor)
        for index, tensor in enumerate(root.inputs)
    )


def operand_of(tensor: gs.Tensor) -> Small | np.ndarray | None:
    """Return a tensor between quantizers: integers, constant floats, or None if left out.

    Raises Refused where it is neither.
    """
    if is_constant(tensor):
        return np.asarray(tensor.values)
    if not tensor.name:
        return None
    (node,) = tensor.inputs
    if not is_constant(node.inputs[0]):
        return small_of(node, node.inputs[0])
    if "block_size" in node.attrs or not all(is_constant(t) for t in node.inputs if t.name):
        raise Refused(f"{tensor.name} is made with scales by block, or that are not constant")
    return dequantized(node)


def _weights(tensor: gs.Tensor) -> Weights | None:
    """Return constant int8 numbers without a zero point, or None where there are none."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or not all(is_constant(t) for t in node.inputs if t.name):
        return None
    integers, scales, *zero = (t for t in node.inputs if t.name)
    if integers.dtype != np.int8 or "block_size" in node.attrs:
        return None
    if any(t.values.any() for t in zero):
        return None
    axis = int(node.attrs.get("axis", 1))
    return Weights(integers.values, scales.values.reshape(-1), axis)
