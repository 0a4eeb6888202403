"""Regions: which nodes become one kernel.

A region is an anchor (a layer, a product, a reduction, or the first of some elementwise nodes)
and the elementwise nodes behind it that can run on its results before they are stored.
"""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant, static_shape

# Nodes that only drop or add axes of extent 1 do not end a region.
_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes that run as one kernel; `nodes[0]` is the anchor, the others follow in order."""

    nodes: tuple[gs.Node, ...]

    @property
    def anchor(self) -> gs.Node:
        """The node that decides the kernel."""
        return self.nodes[0]


def find_regions(
    graph: Graph,
    takes_followers: Callable[[gs.Node], bool],
    is_elementwise: Callable[[gs.Node], bool],
) -> list[Region]:
    """Partition the main graph's nodes into regions, in an order in which they can run."""
    nodes = graph.sorted().nodes
    finder = _Finder(nodes, is_elementwise)
    for node in nodes:
        if id(node) in finder.region_of:
            continue
        members = [node]
        finder.claim(members)
        if takes_followers(node):
            finder.grow(members)
    return finder.ordered()


class _Finder:
    def __init__(self, nodes: list[gs.Node], is_elementwise: Callable[[gs.Node], bool]) -> None:
        self.position = {id(node): i for i, node in enumerate(nodes)}
        self.is_elementwise = is_elementwise
        self.region_of: dict[int, list[gs.Node]] = {}
        self.regions: list[list[gs.Node]] = []

    def claim(self, members: list[gs.Node]) -> None:
        self.regions.append(members)
        self.region_of[id(members[0])] = members

    def grow(self, members: list[gs.Node]) -> None:
        """Add followers while one is found, earliest first."""
        shape = _bare_shape(members[0])
        while True:
            candidates = sorted(
                {
                    id(consumer): consumer
                    for node in members
                    for tensor in node.outputs
                    for consumer in tensor.outputs
                    if id(consumer) not in self.region_of and id(consumer) in self.position
                }.values(),
                key=lambda n: self.position[id(n)],
            )
            chosen = next((n for n in candidates if self._may_follow(n, members, shape)), None)
            if chosen is None:
                return
            members.append(chosen)
            self.region_of[id(chosen)] = members

    def ordered(self) -> list[Region]:
        """Sort members within, and regions among each other, by what they read."""
        done: set[int] = set()
        order: list[Region] = []
        for region in self.regions:
            stack = [region]
            while stack:
                top = stack[-1]
                if id(top) in done:
                    stack.pop()
                    continue
                waiting = [r for r in self._before(top) if id(r) not in done]
                if waiting:
                    stack.extend(waiting)
                    continue
                done.add(id(top))
                stack.pop()
                anchor, *rest = top
                rest.sort(key=lambda n: self.position[id(n)])
                order.append(Region((anchor, *rest)))
        return order

    def _may_follow(
        self, node: gs.Node, members: list[gs.Node], shape: tuple[int, ...] | None
    ) -> bool:
        if shape is None or _bare_shape(node) != shape or len(node.outputs) != 1:
            return False
        inside = {id(n) for n in members}
        if node.op in _RESHAPES:
            # A reshape follows the data; a target shape that is computed here does not count.
            if not any(id(n) in inside for n in node.inputs[0].inputs):
                return False
        elif not self.is_elementwise(node):
            return False
        for tensor in node.inputs:
            for producer in tensor.inputs:
                if id(producer) not in inside and self._depends(producer, inside):
                    return False
        return True

    def _depends(self, node: gs.Node, inside: set[int]) -> bool:
        """Say whether `node`, or its region, reads what the region `inside` computes."""
        stack, seen = [node], set()
        while stack:
            top = stack.pop()
            for member in self.region_of.get(id(top), [top]):
                if id(member) in inside:
                    return True
                if id(member) in seen:
                    continue
                seen.add(id(member))
                stack.extend(p for t in inputs_of(member) for p in t.inputs)
        return False

    def _before(self, region: list[gs.Node]) -> list[list[gs.Node]]:
        inside = {id(n) for n in region}
        return [
            self.region_of[id(producer)]
            for node in region
            for tensor in inputs_of(node)
            for producer in tensor.inputs
            if id(producer) not in inside
        ]


def inputs_of(node: gs.Node) -> list[gs.Tensor]:
    """Return what a node reads: its inputs, and what its subgraphs take from outside."""
    tensors = [t for t in node.inputs if t.name and not is_constant(t)]
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            outer = value._foreign_tensors().values()
            tensors.extend(t for t in outer if not is_constant(t))
    return tensors


def _bare_shape(node: gs.Node) -> tuple[int, ...] | None:
    shape = static_shape(node.outputs[0]) if node.outputs else None
    return None if shape is None else tuple(d for d in shape if d != 1)
