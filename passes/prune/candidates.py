"""Which layers may be pruned, and why the others may not."""

from collections.abc import Collection
from typing import NamedTuple

from tilewright.errors import UnknownName
from tilewright.graph import Graph, is_constant
from tilewright.layers import Layer, linear_layer, linear_layers
from tilewright.protocol import Note


class Candidates(NamedTuple):
    """Layers in stored order, and a note for each one that is left dense."""

    layers: list[Layer]
    notes: list[Note]


def candidates(
    graph: Graph,
    *,
    ends: bool = True,
    smallest: int = 0,
    grouped: bool = True,
    skip: Collection[str] = (),
) -> Candidates:
    """Split the linear layers into those that may be pruned and notes on the others.

    `ends` admits the first and the last layer, `grouped` grouped and depthwise convolutions;
    layers with fewer than `smallest` weights and those named by `skip` stay dense.
    Raises UnknownName where `skip` names no layer.
    """
    layers = list(linear_layers(graph))
    names = [layer.name for layer in layers]
    for name in skip:
        if name not in names:
            raise UnknownName("layer", name, names)
    found = Candidates([], [*transposed(graph), *inner(graph)])
    borders = {names[0]: "first", names[-1]: "last"} if layers and not ends else {}
    for layer in layers:
        reason = None
        if layer.name in skip:
            reason = "named by skip"
        elif fixed := cannot_change(graph, layer):
            reason = fixed
        elif layer.groups > 1 and not grouped:
            kind = "depthwise" if layer.is_depthwise else "grouped"
            reason = f"a {kind} convolution has few weights for what it does"
        elif layer.name in borders:
            reason = f"the {borders[layer.name]} layer of the network; ends=true prunes it too"
        elif layer.weight.values.size < smallest:
            reason = f"{layer.weight.values.size} weights are fewer than smallest={smallest}"
        if reason:
            found.notes.append(Note(layer.name, reason))
        else:
            found.layers.append(layer)
    return found


def cannot_change(graph: Graph, layer: Layer) -> str | None:
    """Say why a layer's weights must stay as they are, or None."""
    if layer.is_quantized:
        return "its weights are quantized; prune before quantizing"
    others = readers(graph, layer.weight.name)
    others.remove(layer.name)
    names = ", ".join(dict.fromkeys(others))
    return f"{layer.weight.name} is shared with {names}" if others else None


def readers(graph: Graph, name: str) -> list[str]:
    """Return the nodes, in all subgraphs too, that read a tensor; once for each input.

    A weight that is also a graph output counts as read by "the graph's output".
    """
    nodes = [node for scope in graph.scopes() for node in scope.nodes]
    found = [str(node.name) for node in nodes for t in node.inputs if t.name == name]
    return found + ["the graph's output" for t in graph.outputs if t.name == name]


def inner(graph: Graph) -> list[Note]:
    """Note the layers inside subgraphs, which are not pruned."""
    scopes = list(graph.scopes())[1:]
    return [
        Note(node.name, "it is inside a branch or a loop, where nothing is pruned")
        for scope in scopes
        for node in scope.nodes
        if linear_layer(node) is not None
    ]


def transposed(graph: Graph) -> list[Note]:
    """Note the transposed convolutions, of whose matrix no position meets all columns."""
    return [
        Note(node.name, "a ConvTranspose is not pruned")
        for node in graph.nodes
        if node.op == "ConvTranspose" and is_constant(node.inputs[1])
    ]
