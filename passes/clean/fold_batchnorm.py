"""Fold each BatchNormalization into the layer before it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.facts import Fact, cannot_take_batchnorm
from tilewright.graph import Graph, constant
from tilewright.protocol import Context, Note, Outcome


@dataclass(frozen=True)
class FoldBatchnorm:
    """Scale a layer's weights and shift its bias so that the normalisation behind it can go.

    With y = W x + b and BatchNormalization (y - mean) / sqrt(var + epsilon) * scale + shift:

        f  = scale / sqrt(var + epsilon)
        W' = f W         (row by row: each f belongs to one output)
        b' = (b - mean) f + shift

    Layers are Conv, ConvTranspose, Gemm, and MatMul on a matrix, where an Add takes the place
    of the normalisation. A layer whose weights or result are read elsewhere too is left alone.
    """

    name: ClassVar[str] = "fold-batchnorm"
    source: ClassVar[str] = 'Jacob et al., "Quantization and Training" (2018), section 3.2'
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.BATCHNORM_FOLDED})
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = True

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Fold every BatchNormalization that follows a layer."""
        edited = graph.edit()
        notes = []
        for node in edited.nodes:
            if node.op != "BatchNormalization":
                continue
            if reason := cannot_take_batchnorm(edited, node):
                notes.append(Note(node.name, f"not folded: {reason}"))
            else:
                _fold(edited, node)
        return Outcome(edited, tuple(notes))


def _fold(graph: Graph, node: gs.Node) -> None:
    host = node.inputs[0].inputs[0]
    scale, shift, mean, variance = (t.values.astype(np.float64) for t in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    weight = host.inputs[1]
    dtype = weight.dtype
    weight.values = constant(
        weight.name, _scaled(host, weight.values.astype(np.float64), factor).astype(dtype)
    ).values
    moved = ((_bias(host) - mean) * factor + shift).astype(dtype)
    # A new constant under a name of its own: the old bias may be shared.
    bias = constant(f"{node.name}/bias", moved)
    out = node.outputs[0]
    if host.op == "MatMul":
        node.op, node.attrs = "Add", {}
        node.inputs = [node.inputs[0], bias]
        return
    node.inputs.clear()
    node.outputs.clear()
    graph.gs.nodes.remove(node)
    host.inputs = [*list(host.inputs)[:2], bias]
    host.outputs = [out]
    if host.op == "Gemm":
        host.attrs["beta"] = 1.0


def _scaled(host: gs.Node, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiply each output's weights by its factor."""
    scaled: np.ndarray
    if host.op == "MatMul" or (host.op == "Gemm" and not host.attrs.get("transB")):
        scaled = weights * factor
        return scaled
    if host.op != "ConvTranspose":
        scaled = weights * factor.reshape(-1, *[1] * (weights.ndim - 1))
        return scaled
    # ConvTranspose keeps (inputs, outputs of one group, taps); inputs are grouped in order.
    groups = int(host.attrs.get("group", 1))
    grouped = weights.reshape(groups, -1, *weights.shape[1:])
    by_group = factor.reshape(groups, 1, -1, *[1] * (weights.ndim - 2))
    scaled = (grouped * by_group).reshape(weights.shape)
    return scaled


def _bias(host: gs.Node) -> np.ndarray:
    if host.op == "MatMul" or len(host.inputs) < 3 or not host.inputs[2].name:
        return np.zeros(1)
    beta = host.attrs.get("beta", 1.0) if host.op == "Gemm" else 1.0
    values: np.ndarray = host.inputs[2].values.astype(np.float64) * beta
    return values
