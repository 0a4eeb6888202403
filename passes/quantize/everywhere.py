"""Which tensors are quantized for a device that runs whole networks on integers.

Such a device rounds once behind a layer, its bias and a clamp, and looks any function of single
numbers up in a table. Between these every tensor is of 8 bits; within them nothing is rounded.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant
from tilewright.layers import weighted_layer
from tilewright.passes.prune.bias import use_counts
from tilewright.pointwise import functions_of

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_POOLS = frozenset(
    {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceMax", "Softmax"}
)
_PAIRS = frozenset({"Add", "Sub", "Mul"})
# What comes out of these went in: one scale is right for both sides.
_MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Flatten",
        "GlobalMaxPool",
        "MaxPool",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


class Cut(NamedTuple):
    """A tensor to quantize. `readers` get it back from integers; None: whoever reads it.

    Tensors of one `group` share a scale; the range of the group is that of its `counts`.
    """

    tensor: gs.Variable
    readers: tuple[gs.Node, ...] | None
    group: int
    counts: bool


def cuts(graph: Graph, skip: Collection[str]) -> list[Cut]:
    """Return the tensors of a sorted graph to quantize; nodes named in `skip` stay in floats.

    Operators that no multiplication of tensors is connected with stay in floats, too.
    """
    taken, inner = _joined(graph, skip)
    taken = _connected(graph, _without_float_sums(graph, taken))
    outputs = {t.name for t in graph.outputs}
    found: dict[str, tuple[gs.Variable, tuple[gs.Node, ...] | None]] = {}
    for tensor in _floats(graph):
        if tensor.name in inner:
            continue
        readers = tuple(n for n in _unique(tensor.outputs) if n.name in taken)
        if any(n.name in taken for n in tensor.inputs):
            found[tensor.name] = (tensor, None)
        elif readers:
            found[tensor.name] = (tensor, readers)
    groups = _groups(graph, taken, found)
    return [
        Cut(tensor, readers, groups[name], name in outputs or not _only_moves(tensor, taken))
        for name, (tensor, readers) in found.items()
    ]


def _joined(graph: Graph, skip: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the nodes that integers can do, and the tensors that stay within joined ones."""
    uses = use_counts(graph)
    taken, inner = set[str](), set[str]()

    def join_function(start: gs.Tensor) -> None:
        for *_, last in iter(lambda: list(functions_of(start, uses, taken | set(skip))), []):
            taken.update(node.name for node in last.nodes)
            inner.update(n.outputs[0].name for n in last.nodes)
            inner.discard(last.result.name)

    for tensor in graph.inputs:
        join_function(tensor)
    for node in graph.nodes:
        if node.name not in taken and node.name not in skip and _is_known(node):
            taken.add(node.name)
            if node.op not in _MOVES and node.op != "Softmax":
                for behind in _behind(node, uses, skip):
                    inner.add(behind.inputs[_variable(behind)].name)
                    taken.add(behind.name)
        for out in node.outputs:
            if out.name not in inner and out.dtype == np.float32:
                join_function(out)
    return taken, inner


def _is_known(node: gs.Node) -> bool:
    if node.outputs[0].dtype != np.float32:
        return False
    if node.op in _PRODUCTS:
        return not is_constant(node.inputs[0])
    if node.op in _PAIRS:
        return len({t.name for t in node.inputs}) == 2
    return node.op in _POOLS | _MOVES


def _behind(node: gs.Node, uses: dict[str, int], skip: Collection[str]) -> Iterator[gs.Node]:
    """Yield the bias and the clamp that follow a node and are rounded together with it."""
    layer = weighted_layer(node)
    if layer is not None and uses.get(node.outputs[0].name) == 1 and node.outputs[0].outputs:
        add = node.outputs[0].outputs[0]
        if add.op == "Add" and add.name not in skip and _adds_bias(node, add, layer.outputs):
            yield add
            node = add
    if uses.get(node.outputs[0].name) == 1 and node.outputs[0].outputs:
        clamp = node.outputs[0].outputs[0]
        fixed = all(is_constant(t) or not t.name for t in clamp.inputs[1:])
        if clamp.op in ("Relu", "Clip") and clamp.name not in skip and fixed:
            yield clamp


def _adds_bias(node: gs.Node, add: gs.Node, outputs: int) -> bool:
    """Say whether a constant is added to a layer's outputs, a number for each."""
    added = add.inputs[1 - _variable(add)]
    if not is_constant(added) or added.values.size != outputs:
        return False
    behind = len(node.outputs[0].shape or ()) - 2 if node.op.startswith("Conv") else 0
    return tuple(added.shape[len(added.shape) - behind - 1 :]) == (outputs, *(1,) * behind)


def _variable(node: gs.Node) -> int:
    """Return which input of a node with one activation that is."""
    return next((i for i, t in enumerate(node.inputs) if not is_constant(t)), 0)


def _without_float_sums(graph: Graph, taken: set[str]) -> set[str]:
    """Leave out sums of floats for floats: one side comes from, and the result goes to, others.

    Such are residual streams around a normalization that stays in floats: they lose nothing.
    """
    kept = set(taken)
    outputs = {t.name for t in graph.outputs}
    for node in reversed(graph.nodes):
        if node.op not in _PAIRS or node.name not in kept or node.outputs[0].name in outputs:
            continue
        from_others = any(not _is_written(t, taken) for t in node.inputs if not is_constant(t))
        for_others = all(reader.name not in kept for reader in node.outputs[0].outputs)
        if from_others and for_others:
            kept.discard(node.name)
    return kept


def _connected(graph: Graph, taken: set[str]) -> set[str]:
    """Return the taken nodes that what they write connects with a product of tensors."""
    view = nx.Graph()
    view.add_nodes_from(taken)
    for tensor in _floats(graph):
        if _is_written(tensor, taken):
            nx.add_path(
                view, [n.name for n in (*tensor.inputs, *tensor.outputs) if n.name in taken]
            )
    products = {n.name for n in graph.nodes if n.op in _PRODUCTS}
    kept = (part for part in nx.connected_components(view) if part & products)
    return set().union(*kept)


def _is_written(tensor: gs.Tensor, taken: Collection[str]) -> bool:
    return any(node.name in taken for node in tensor.inputs)


def _floats(graph: Graph) -> Iterator[gs.Variable]:
    for tensor in (*graph.inputs, *(t for node in graph.nodes for t in node.outputs)):
        if tensor.name and tensor.dtype == np.float32:
            yield tensor


def _unique(nodes: list[gs.Node]) -> list[gs.Node]:
    return list({node.name: node for node in nodes}.values())


def _groups(graph: Graph, taken: set[str], found: Collection[str]) -> dict[str, int]:
    """Number the sets of tensors between which values only move."""
    view = nx.Graph()
    view.add_nodes_from(found)
    for node in graph.nodes:
        if node.name in taken and node.op in _MOVES:
            nx.add_path(
                view, [t.name for t in (*node.inputs, *node.outputs) if t.name in found]
            )
    return {
        name: number
        for number, part in enumerate(nx.connected_components(view))
        for name in part
    }


def _only_moves(tensor: gs.Variable, taken: set[str]) -> bool:
    """Say whether all that is done with a tensor is to move it."""
    readers = tensor.outputs
    return bool(readers) and all(n.op in _MOVES and n.name in taken for n in readers)
