"""Indices that the network computes: kept within their tables, as TVM's kernels do not look."""

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, constant, is_constant, static_shape
from tilewright.targets.picked import PICKS, origin, picked_entries

_BY_TUPLES = "GatherND"


def clamped(graph: Graph) -> Graph:
    """Return a graph whose computed indices are the nearest that there are.

    CPU kernels do the same. What an input picks itself is refused before (picked.py).
    """
    edited, refused = graph.edit(), picked_entries(graph)
    for node in edited.nodes:
        if node.op not in (*PICKS, _BY_TUPLES) or is_constant(node.inputs[1]):
            continue
        picks = node.op in PICKS and origin(node.inputs[1]) in refused
        if not picks and (counts := _counts(node)) is not None:
            node.inputs[1] = _clamp(edited, node, counts)
    return edited.sorted()


def _counts(node: gs.Node) -> np.ndarray | None:
    """Return how many entries there are, for each number of a tuple; None of unknown shapes."""
    table, tuples = static_shape(node.inputs[0]), static_shape(node.inputs[1])
    if table is None or tuples is None or not table:
        return None
    if node.op in PICKS:
        return np.array(table[int(node.attrs.get("axis", 0))])
    first = int(node.attrs.get("batch_dims", 0))
    return np.array(table[first : first + tuples[-1]])


def _clamp(graph: Graph, node: gs.Node, counts: np.ndarray) -> gs.Variable:
    indices = node.inputs[1]
    limits = (("Max", -counts), ("Min", counts - 1))
    for op, limit in limits:
        name = f"{node.name}/{op.lower()}"
        result = gs.Variable(name, indices.dtype, indices.shape)
        bound = constant(f"{name}/limit", limit.astype(indices.dtype))
        graph.gs.nodes.append(gs.Node(op, name, {}, [indices, bound], [result]))
        indices = result
    return indices
