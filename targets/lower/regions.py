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
    """Nodes that run as one kernel; `nodes[0]` is the anchor, the others follow in order.

    Attention has the three regions that it is made of as `parts`: scores, softmax and values.
    They can run by themselves where it cannot.
    """

    nodes: tuple[gs.Node, ...]
    parts: tuple["Region", ...] = ()

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
    finder.join_attention({t.name for t in graph.outputs})
    return finder.ordered()


class _Finder:
    def __init__(self, nodes: list[gs.Node], is_elementwise: Callable[[gs.Node], bool]) -> None:
        self.position = {id(node): i for i, node in enumerate(nodes)}
        self.is_elementwise = is_elementwise
        self.region_of: dict[int, list[gs.Node]] = {}
        self.regions: list[list[gs.Node]] = []
        self.parts: dict[int, list[list[gs.Node]]] = {}

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

    def join_attention(self, kept: set[str]) -> None:
        """Make one region of each product, the softmax of it, and the product with values.

        `kept` names tensors that must be stored: the graph's outputs.
        """
        for softmax in [r for r in self.regions if r[0].op == "Softmax"]:
            source, weights = softmax[0].inputs[0], softmax[0].outputs[0]
            if not source.inputs or len(weights.outputs) != 1:
                continue
            parts = [
                self.region_of[id(source.inputs[0])],
                softmax,
                self.region_of[id(weights.outputs[0])],
            ]
            scores, _, values = parts
            if not (
                _is_product(scores[0])
                and _is_product(values[0])
                and values[0].inputs[0] is weights
                and _only_writes(scores, source)
                and not any(t.name in kept for n in (*scores, *softmax) for t in n.outputs)
                and self._independent(scores, softmax, values)
            ):
                continue
            joined = [*scores, *softmax, *values]
            self.parts[id(joined)] = parts
            taken = {id(part) for part in parts}
            self.regions = [*(r for r in self.regions if id(r) not in taken), joined]
            for node in joined:
                self.region_of[id(node)] = joined

    def _independent(
        self, scores: list[gs.Node], softmax: list[gs.Node], values: list[gs.Node]
    ) -> bool:
        """Say whether the values depend on the scores through nothing but the softmax."""
        inside = {id(n) for n in scores}
        own = {id(n) for n in (*softmax, *values)}
        producers = [
            producer
            for node in values
            for tensor in inputs_of(node)
            for producer in tensor.inputs
            if id(producer) not in own
        ]
        return not any(self._depends(producer, inside) for producer in producers)

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
                parts = tuple(self._sorted(part) for part in self.parts.get(id(top), []))
                nodes = tuple(n for part in parts for n in part.nodes)
                order.append(Region(nodes, parts) if parts else self._sorted(top))
        return order

    def _sorted(self, members: list[gs.Node]) -> Region:
        anchor, *rest = members
        return Region((anchor, *sorted(rest, key=lambda n: self.position[id(n)])))

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


def _is_product(node: gs.Node) -> bool:
    return node.op == "MatMul" and not any(is_constant(t) for t in node.inputs)


def _only_writes(members: list[gs.Node], tensor: gs.Tensor) -> bool:
    """Say whether nodes outside read nothing of these nodes but one tensor, and that once."""
    inside = {id(n) for n in members}
    outside = [
        t.name
        for node in members
        for t in node.outputs
        for reader in t.outputs
        if id(reader) not in inside
    ]
    return outside == [tensor.name]


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
