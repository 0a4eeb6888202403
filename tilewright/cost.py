"""Cost: multiplications and weights of each node, counted from shapes, not measured."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant, static_shape
from tilewright.layers import linear_layer


@dataclass(frozen=True)
class NodeCost:
    """What one node costs in one inference.

    `macs` counts multiply-adds of matrix products and convolutions and 0 for all else;
    `active_macs` only those with a weight that is not zero. `active` counts such weights.
    A weight that several nodes read is counted at the first of them.
    """

    name: str
    op: str
    macs: int
    active_macs: int
    parameters: int
    active: int
    weight_bytes: int


def node_costs(graph: Graph) -> Iterator[NodeCost]:
    """Yield the cost of every node of the main graph, in stored order."""
    counted: set[str] = set()
    for node in graph.nodes:
        fresh = [t for t in node.inputs if is_constant(t) and t.name not in counted]
        counted.update(t.name for t in fresh)
        macs, active_macs = _macs(node)
        yield NodeCost(
            name=node.name,
            op=node.op,
            macs=macs,
            active_macs=active_macs,
            parameters=sum(t.values.size for t in fresh),
            active=sum(int(np.count_nonzero(t.values)) for t in fresh),
            weight_bytes=sum(t.values.nbytes for t in fresh),
        )


def parameter_bytes(graph: Graph) -> int:
    """Return the bytes of all weights: what "model size" means in reports."""
    return sum(v.nbytes for v in _weights(graph))


def parameter_counts(graph: Graph) -> tuple[int, int]:
    """Return how many weights there are, and how many are not zero."""
    weights = _weights(graph)
    return sum(v.size for v in weights), sum(int(np.count_nonzero(v)) for v in weights)


def _weights(graph: Graph) -> list[np.ndarray]:
    """Return the weights of the main graph and of subgraphs, each once."""
    # A subgraph lists the outer constants that it reads too: as the same objects.
    constants = {
        id(tensor): tensor.values
        for scope in graph.scopes()
        for tensor in scope.tensors().values()
        if is_constant(tensor)
    }
    return [values for values in constants.values() if _is_weight(values)]


def _is_weight(values: np.ndarray) -> bool:
    """Say whether a constant is float, or quantized; other integers are shapes and indices."""
    # ml_dtypes' bfloat16, float8 and int4 are of kind "V" or "f" and are weights too.
    return values.dtype.kind in "fV" or (values.dtype.kind in "iu" and values.itemsize == 1)


def _macs(node: gs.Node) -> tuple[int, int]:
    layer = linear_layer(node)
    if layer is not None:
        active = int(np.count_nonzero(layer.weight.values))
        return layer.outputs * layer.inputs * layer.positions, active * layer.positions
    if node.op == "MatMul":
        left, out = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        if left and out is not None:
            macs = left[-1] * int(np.prod(out, dtype=np.int64))
            return macs, macs
    return 0, 0
