"""Cost: multiplications and weights of each node, counted from shapes, not measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant, static_shape
from tilewright.layers import linear_layer
from tilewright.nbits import BlockWeights, block_weights


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
        counts = [_count(t.values, _packed(node)) for t in fresh]
        yield NodeCost(
            name=node.name,
            op=node.op,
            macs=macs,
            active_macs=active_macs,
            parameters=sum(size for size, _ in counts),
            active=sum(active for _, active in counts),
            weight_bytes=sum(t.values.nbytes for t in fresh),
        )


def parameter_bytes(graph: Graph) -> int:
    """Return the bytes of all weights: what "model size" means in reports."""
    return sum(v.nbytes for v in _weights(graph))


def parameter_counts(graph: Graph) -> tuple[int, int]:
    """Return how many weights there are, and how many are not zero."""
    packed = {
        key: weights
        for scope in graph.scopes()
        for node in scope.nodes
        for key, weights in _packed(node).items()
    }
    counts = [_count(values, packed) for values in _weights(graph)]
    return sum(size for size, _ in counts), sum(active for _, active in counts)


def _packed(node: gs.Node) -> dict[int, BlockWeights]:
    """Return a node's 4-bit weights, two a byte, by the identity of the array of bytes."""
    weights = block_weights(node)
    return {} if weights is None else {id(node.inputs[1].values): weights}


def _count(values: np.ndarray, packed: Mapping[int, BlockWeights]) -> tuple[int, int]:
    """Return how many weights an array holds, and how many are not zero."""
    weights = packed.get(id(values))
    if weights is None:
        return values.size, int(np.count_nonzero(values))
    return len(weights.values) * weights.inputs, weights.active()


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
    weights = block_weights(node)
    if weights is not None:
        out = static_shape(node.outputs[0])
        positions = 0 if out is None else int(np.prod(out[:-1], dtype=np.int64))
        each = len(weights.values) * weights.inputs
        return each * positions, weights.active() * positions
    if node.op == "MatMul":
        left, out = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        if left and out is not None:
            macs = left[-1] * int(np.prod(out, dtype=np.int64))
            return macs, macs
    return 0, 0
