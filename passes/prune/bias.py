"""The bias of a linear layer, wherever the graph keeps it."""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, constant, is_constant
from tilewright.layers import Layer


def bias_of(layer: Layer, uses: Mapping[str, int]) -> gs.Constant | None:
    """Return the constant that is added to each output of this layer and to nothing else.

    It is the third input of Conv and Gemm (with alpha and beta 1), or the other operand of the
    one Add behind a MatMul. `uses` is `use_counts`. None where there is no such constant.
    """
    node = layer.node
    if node.op == "MatMul":
        found = _added_behind(node, uses)
    elif len(node.inputs) < 3 or any(node.attrs.get(k, 1.0) != 1.0 for k in ("alpha", "beta")):
        return None
    else:
        found = node.inputs[2]
    if found is None or not is_constant(found) or uses[found.name] != 1:
        return None
    by_output = found.shape and found.shape[-1] == layer.outputs == found.values.size
    return found if by_output else None


def shift(bias: gs.Constant, by: np.ndarray) -> None:
    """Add a vector to a bias; only in an edited graph."""
    moved = bias.values.astype(np.float64) + by.reshape(bias.shape)
    bias.values = constant(bias.name, moved.astype(bias.dtype)).values


def use_counts(graph: Graph) -> dict[str, int]:
    """Count how often each tensor is read, in all subgraphs too, or is an output."""
    counts: dict[str, int] = {}
    for scope in graph.scopes():
        for tensor in [t for node in scope.nodes for t in node.inputs] + list(scope.outputs):
            counts[tensor.name] = counts.get(tensor.name, 0) + 1
    return counts


def _added_behind(node: gs.Node, uses: Mapping[str, int]) -> gs.Tensor | None:
    out = node.outputs[0]
    if uses.get(out.name, 0) != 1 or not out.outputs:
        return None
    reader = out.outputs[0]
    if reader.op != "Add":
        return None
    return next((t for t in reader.inputs if t is not out), None)
