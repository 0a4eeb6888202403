"""Coupled dimensions of a graph: what must be selected or permuted together.

Removing one channel of a convolution removes a row of its weights, an entry of its bias and of
every normalization behind it, the same channel of whatever it is added to, and a column of all
that read it. `Couplings` follows each axis of each tensor through the operators
(`coupling_rules.py` says how each couples them), and changes a dimension wherever it occurs.

Groups of parameters that depend on each other are those of Fang et al., "DepGraph" (2023); that
axes are sums and products of dimensions, so that heads, their depths and the halves of rotary
pairs are found by unification, is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from tilewright.coupling_rules import RULES, Count, NotFollowed
from tilewright.dimensions import Dimension, Extent, freeze, indices, leaves
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, constant, is_constant, static_shape
from tilewright.protocol import Note


class Couplings:
    """The dimensions that the axes of a graph's tensors are made of.

    `notes` say which nodes could not be followed: the axes that they touch are fixed.
    """

    def __init__(self, graph: Graph) -> None:
        """Follow every node of a graph with known shapes."""
        self.graph = graph
        self.notes: list[Note] = []
        self._axes: dict[str, list[Extent]] = {}
        self._sums: list[tuple[str, Extent]] = []
        self._counts: list[tuple[str, int | str, Callable[[Count], object]]] = []
        for node in graph.nodes:
            try:
                self._follow(node)
            except NotFollowed as error:
                self.notes.append(Note(node.name, f"its axes stay as they are: it {error}"))
                self._freeze(node, f"{node.op} {node.name} is not followed")
        for tensor in (*graph.inputs, *graph.outputs):
            for extent in self._axes.get(tensor.name, ()):
                freeze(extent, f'it is an axis of "{tensor.name}", which callers see')

    def of(self, tensor: gs.Tensor) -> list[Extent]:
        """Return what a tensor's axes are made of. Raises NotFollowed for unknown shapes."""
        if tensor.name not in self._axes:
            shape = static_shape(tensor)
            if shape is None:
                raise NotFollowed(f'touches "{tensor.name}", whose shape is not known')
            self._axes[tensor.name] = [Dimension(n) for n in shape]
        return self._axes[tensor.name]

    def sums_over(self, node: gs.Node, extent: Extent) -> None:
        """Note that a node adds up the products of an extent's entries of its first input."""
        self._sums.append((node.name, extent))

    def counts(
        self, node: gs.Node, place: int | str, numbers: Callable[[Count], object]
    ) -> None:
        """Note that an input or attribute of a node counts entries: `numbers` gives it."""
        self._counts.append((node.name, place, numbers))

    @cached_property
    def places(self) -> Mapping[Dimension, Sequence[tuple[str, int]]]:
        """The dimensions that may be permuted, and the axes (tensor, axis) they run through."""
        found: dict[Dimension, list[tuple[str, int]]] = {}
        for name, extents in self._axes.items():
            for axis, extent in enumerate(extents):
                for leaf in dict.fromkeys(leaves(extent)):
                    if leaf.size > 1 and not leaf.fixed:
                        found.setdefault(leaf, []).append((name, axis))
        return found

    def dimension(self, tensor: str, axis: int) -> list[Dimension]:
        """Return the dimensions that one axis is made of, from the slowest to the fastest."""
        return list(leaves(self._axes[tensor][axis]))

    def as_networkx(self) -> nx.Graph:
        """Return a graph of dimensions and of the axes (tensor, axis) that they run through."""
        return nx.Graph(
            (dimension, place) for dimension, where in self.places.items() for place in where
        )

    def permute(self, orders: Mapping[Dimension, Sequence[int]]) -> Graph:
        """Return the graph with entries in another order, wherever they occur.

        Its answers are the same. Raises UnusableInput for an order that is none, or a
        dimension whose order callers see.
        """
        for dimension, order in orders.items():
            if sorted(order) != list(range(dimension.size)):
                raise UnusableInput(
                    f"permute: {len(order)} numbers are no order of the {dimension.size} "
                    f"entries of {self._named(dimension)}."
                )
        return self._chosen(orders)

    def select(self, kept: Mapping[Dimension, Sequence[int]]) -> Graph:
        """Return the graph with some entries only, wherever they occur.

        Its answers are those of the graph in which the rest is multiplied by zero before it is
        added up. Raises UnusableInput where nothing is left, an entry is none, or the number of
        entries counts.
        """
        for dimension, entries in kept.items():
            if dimension.counted:
                raise UnusableInput(
                    f"select: {self._named(dimension)} must keep its number of entries, for "
                    f"{dimension.counted}."
                )
            unusable = {i for i in entries if not 0 <= i < dimension.size}
            if unusable or not entries or len(set(entries)) < len(entries):
                raise UnusableInput(
                    f"select: {list(entries)} are not different entries of "
                    f"{self._named(dimension)}, which has {dimension.size}."
                )
        return self._chosen(kept)

    def split(self, dimension: Dimension, groups: Sequence[Sequence[int]]) -> tuple[Graph, ...]:
        """Return a graph for each group of entries, which may overlap."""
        return tuple(self.select({dimension: group}) for group in groups)

    def sums(self, dimension: Dimension) -> list[str]:
        """Return the nodes that add up over a dimension."""
        return [name for name, extent in self._sums if dimension in leaves(extent)]

    def _follow(self, node: gs.Node) -> None:
        rule = RULES.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        if rule is None:
            raise NotFollowed(f"has no rule ({node.op})")
        rule(self, node)

    def _freeze(self, node: gs.Node, reason: str) -> None:
        ours = self.graph.gs.tensors()
        inner = {
            name
            for branch in node.attrs.values()
            if isinstance(branch, gs.Graph)
            for scope in Graph(branch).scopes()
            for name in scope.tensors()
        }
        read_inside = (ours[name] for name in inner if name in ours)
        for tensor in (*node.inputs, *node.outputs, *read_inside):
            if static_shape(tensor) is not None:
                for extent in self.of(tensor):
                    freeze(extent, reason)

    def _named(self, dimension: Dimension) -> str:
        where = self.places.get(dimension)
        return f'axis {where[0][1]} of "{where[0][0]}"' if where else "a dimension"

    def _chosen(self, wanted: Mapping[Dimension, Sequence[int]]) -> Graph:
        for dimension in wanted:
            if dimension not in self.places:
                raise UnusableInput(
                    "A dimension stays as it is: "
                    f"{dimension.fixed or 'it is not one of this graph'}."
                )
        chosen = {d: np.asarray(entries, np.int64) for d, entries in wanted.items()}
        edited = self.graph.edit()
        nodes = {node.name: node for node in edited.nodes}

        def count(extent: Extent) -> int:
            return len(indices(extent, chosen))

        touched = {place[0] for d in chosen for place in self.places[d]}
        for name, tensor in edited.gs.tensors().items():
            if name not in touched:
                continue
            extents = self._axes[name]
            if is_constant(tensor):
                values = tensor.values
                for axis, extent in enumerate(extents):
                    values = np.take(values, indices(extent, chosen), axis)
                tensor.values = constant(name, values).values
            else:
                tensor.shape = [count(extent) for extent in extents]
        for name, place, numbers in self._counts:
            _write(nodes[name], place, numbers(count))
        return edited.infer_shapes()


def _write(node: gs.Node, place: int | str, numbers: object) -> None:
    if isinstance(place, str):
        node.attrs[place] = numbers
        return
    if place == len(node.inputs):
        # A Split into so many parts, which may be of different sizes now.
        del node.attrs["num_outputs"]
        node.inputs.append(constant(f"{node.name}/sizes", np.asarray(numbers, np.int64)))
        return
    tensor = node.inputs[place]
    values = np.asarray(numbers, tensor.values.dtype)
    if not np.array_equal(values, tensor.values):
        node.inputs[place] = constant(f"{node.name}/{tensor.name}", values)
