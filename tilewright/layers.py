"""Linear layers: the nodes whose weights are pruned by passes and tiled by kernels.

Conv, Gemm and MatMul with a constant operand all compute Y = W X for a matrix W of
(outputs, inputs) and some number of positions (tokens, pixels, rows). Passes and targets both
speak of layers in this one form. A ConvTranspose has such a matrix too, but each position meets
some of its columns only: what changes weights one by one takes it as well.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, constant, is_constant, static_shape

_LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer of a graph.

    `weight` is what is stored: floats, or the integers that a DequantizeLinear makes floats of.

    `positions` counts the columns that the matrix is applied to in one inference, 0 while
    the shape is unknown. `groups` > 1 is a grouped or depthwise convolution, whose matrix holds
    the inputs of one group only.
    """

    node: gs.Node
    weight: gs.Constant
    positions: int
    groups: int = 1

    @property
    def name(self) -> str:
        """The node's name: what plans, notes and reports call the layer."""
        return str(self.node.name)

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return int(self.matrix().shape[0])

    @property
    def inputs(self) -> int:
        """Columns of the matrix: input channels times kernel taps."""
        return int(self.matrix().shape[1])

    @property
    def taps(self) -> int:
        """Neighbouring columns of the matrix that one input channel has."""
        return math.prod(self.weight.shape[2:])

    @property
    def source(self) -> gs.Tensor:
        """The activation that the layer reads."""
        return self.node.inputs[0]

    @property
    def is_depthwise(self) -> bool:
        """One input channel a group."""
        return self.node.op == "Conv" and self.groups > 1 and self.weight.shape[1] == 1

    def matrix(self) -> np.ndarray:
        """Return the weights as (outputs, inputs), a read-only view where one exists."""
        return self.as_matrix(self.weight.values)

    def as_matrix(self, values: np.ndarray) -> np.ndarray:
        """Return what has the shape of the stored weights as (outputs, inputs)."""
        by_outputs = values if self.output_axis == 0 else values.swapaxes(0, 1)
        return by_outputs.reshape(by_outputs.shape[0], math.prod(by_outputs.shape[1:]))

    @property
    def output_axis(self) -> int:
        """The axis of the stored weights that counts outputs."""
        rows_first = self.node.op == "Conv" or bool(self.node.attrs.get("transB"))
        return 0 if rows_first else 1

    @property
    def is_quantized(self) -> bool:
        """Its weights are integers."""
        return self.weight is not self.node.inputs[1]

    def replace(self, matrix: np.ndarray) -> None:
        """Give the node the weights of a (outputs, inputs) matrix; only in an edited graph."""
        shape = self.weight.shape
        if self.output_axis == 0:
            values = matrix.reshape(shape)
        else:
            values = matrix.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)
        self.weight.values = constant(self.weight.name, values.astype(self.weight.dtype)).values


def linear_layers(graph: Graph) -> Iterator[Layer]:
    """Yield the layers of the main graph, in stored order."""
    for node in graph.nodes:
        layer = linear_layer(node)
        if layer is not None:
            yield layer


def weighted_layers(graph: Graph) -> Iterator[Layer]:
    """Yield the layers of the main graph, and every ConvTranspose."""
    for node in graph.nodes:
        layer = weighted_layer(node)
        if layer is not None:
            yield layer


def linear_layer(node: gs.Node) -> Layer | None:
    """Return the layer that a node is, or None."""
    return weighted_layer(node) if node.op in _LINEAR else None


def weighted_layer(node: gs.Node) -> Layer | None:
    """Return the layer, or the ConvTranspose, that a node is, or None."""
    if node.op not in (*_LINEAR, "ConvTranspose") or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if weight.inputs and weight.inputs[0].op == "DequantizeLinear":
        weight = weight.inputs[0].inputs[0]
    return layer_with(node, weight) if is_constant(weight) else None


def layer_with(node: gs.Node, weight: gs.Constant) -> Layer | None:
    """Return what `weighted_layer` does of a node with these weights."""
    if is_constant(node.inputs[0]):
        return None
    if node.op == "MatMul" and len(weight.shape) != 2:
        return None
    if node.op == "Gemm" and node.attrs.get("transA"):
        return None
    groups = int(node.attrs.get("group", 1)) if node.op.startswith("Conv") else 1
    return Layer(node, weight, _positions(node), groups)


def _positions(node: gs.Node) -> int:
    shape = static_shape(node.outputs[0])
    if shape is None:
        return 0
    if node.op in ("Conv", "ConvTranspose"):
        return int(shape[0] * np.prod(shape[2:], dtype=np.int64))
    return int(np.prod(shape[:-1], dtype=np.int64))
