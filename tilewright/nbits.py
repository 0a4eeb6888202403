"""Weights of 4 bits in blocks that share a scale, as onnxruntime's MatMulNBits stores them.

The operator is not of the ONNX standard, but it is what tools write who quantize weights only
(com.microsoft, `bits` 4, `block_size` 16 and up): Y = X W^T for a matrix W of (N, K) whose
every `block_size` neighbours in a row are (q - zero) * scale.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, constant, is_constant
from tilewright.schemas import MICROSOFT

OPERATOR = "MatMulNBits"
# Said of nodes that `has_blocks` is false for.
UNSUPPORTED = "has other than constant 4-bit weights and float32 scales, or g_idx or a bias"
_IN_FLOATS = 1  # the accuracy level; at higher ones onnxruntime rounds activations too
MIDDLE = 8  # the zero point where none is stored
_LEAST_SCALE = float(np.finfo(np.float32).tiny)
_NEAR = 0.01  # of a scale: a half float below 3e-6 or above 65504 is further off


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """A matrix of 4-bit `values` (outputs, blocks * block), each 0 to 15.

    `scales` and `zeros` are (outputs, blocks); columns from `inputs` on are padding.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    inputs: int

    @property
    def block(self) -> int:
        """Neighbours in a row that share a scale."""
        return int(self.values.shape[1] // self.scales.shape[1])

    def active(self) -> int:
        """Count the weights that are not zero."""
        steps = self.values != self.zeros.repeat(self.block, axis=1)
        return int(np.count_nonzero(steps[:, : self.inputs]))

    def dequantized(self) -> np.ndarray:
        """Return the matrix (outputs, inputs) in floats."""
        outputs, blocks = self.scales.shape
        wide = self.values.reshape(outputs, blocks, -1).astype(np.float32)
        wide -= self.zeros[:, :, None]
        wide *= self.scales[:, :, None]
        matrix: np.ndarray = wide.reshape(outputs, -1)[:, : self.inputs]
        return matrix


def has_blocks(node: gs.Node) -> bool:
    """Say whether a node is a MatMulNBits of constant 4-bit weights and float32 scales."""
    if node.op != OPERATOR or node.domain != MICROSOFT or node.attrs.get("bits", 4) != 4:
        return False
    _, packed, scales, *rest = node.inputs
    if any(t.name for t in rest[1:]):
        return False  # columns in another order, or a bias
    zero = [t for t in rest if t.name]
    if not all(is_constant(t) for t in (packed, scales, *zero)):
        return False
    return bool(scales.dtype == np.float32 and all(t.dtype == np.uint8 for t in zero))


def block_weights(node: gs.Node) -> BlockWeights | None:
    """Return the weights of a MatMulNBits of 4 bits, or None where it is another node."""
    if not has_blocks(node):
        return None
    packed, scales, *rest = node.inputs[1:]
    zero = [t for t in rest if t.name]
    outputs, inputs = int(node.attrs["N"]), int(node.attrs["K"])
    blocks = -(-inputs // int(node.attrs["block_size"]))
    zeros = np.full((outputs, blocks), MIDDLE, np.uint8)
    if zero:
        zeros = _unpacked(zero[0].values.reshape(outputs, -1))[:, :blocks]
    values = _unpacked(packed.values.reshape(outputs, -1))
    return BlockWeights(values, scales.values.reshape(outputs, blocks), zeros, inputs)


def in_blocks(matrix: np.ndarray, block: int) -> BlockWeights:
    """Round a matrix (outputs, inputs) to 4 bits, symmetrically, blocks of columns at a time.

    The value of largest magnitude in a block becomes -8 steps, as in onnxruntime's quantizer.
    Scales that a half float comes near are half floats, which take half of the memory: weights
    are rounded to the scale that is stored, so little is lost.
    """
    outputs, inputs = matrix.shape
    padded = np.pad(matrix, ((0, 0), (0, -inputs % block))).reshape(outputs, -1, block)
    most = np.abs(padded).argmax(axis=2)
    extreme = np.take_along_axis(padded, most[:, :, None], axis=2)[:, :, 0]
    scales = (extreme / -MIDDLE).astype(np.float32)
    scales[np.abs(scales) < _LEAST_SCALE] = 1.0
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    near = np.abs(halves - scales) <= _NEAR * np.abs(scales)
    scales = np.where(near, halves, scales)
    steps = np.rint(padded / scales[:, :, None]) + MIDDLE
    values = np.clip(steps, 0, 15).astype(np.uint8).reshape(outputs, -1)
    return BlockWeights(values, scales, np.full(scales.shape, MIDDLE, np.uint8), inputs)


def block_node(
    name: str, stem: str, source: gs.Tensor, weights: BlockWeights, out: gs.Tensor
) -> gs.Node:
    """Return the MatMulNBits of these weights; constants are named from `stem`."""
    low, high = weights.values[:, 0::2], weights.values[:, 1::2]
    packed = (low | (high << 4)).reshape(*weights.scales.shape, -1)
    attrs = {
        "K": weights.inputs,
        "N": len(weights.values),
        "bits": 4,
        "block_size": weights.block,
        "accuracy_level": _IN_FLOATS,
    }
    inputs = [
        source,
        constant(f"{stem}/int4", packed),
        constant(f"{stem}/scales", weights.scales),
    ]
    return gs.Node(OPERATOR, name, attrs, inputs, [out], domain=MICROSOFT)


def in_floats(graph: Graph) -> Graph:
    """Return the graph with every MatMulNBits told to multiply in floats."""

    def rounds(node: gs.Node) -> bool:
        level = int(node.attrs.get("accuracy_level", 0))
        return (node.op, node.domain) == (OPERATOR, MICROSOFT) and level > _IN_FLOATS

    if not any(rounds(node) for scope in graph.scopes() for node in scope.nodes):
        return graph
    edited = graph.edit()
    for scope in edited.scopes():
        for node in scope.nodes:
            if rounds(node):
                node.attrs["accuracy_level"] = _IN_FLOATS
    return edited


def declare(graph: Graph) -> None:
    """Let a graph that is edited say that it has such operators."""
    domains = list(graph.gs.import_domains or [onnx.helper.make_opsetid("", graph.opset)])
    if all(d.domain != MICROSOFT for d in domains):
        domains.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    graph.gs.import_domains = domains


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Return two values a byte, the low one first."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(len(packed), -1)
