"""Removed: which channels, hidden features and heads a pass took out, seen from outside."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, Extent, indices, leaves, product
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers


class Group(NamedTuple):
    """A dimension that lost entries, the layers that write it and those that add up over it."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    before: int
    after: int

    def __str__(self) -> str:
        written, read = (", ".join(names) or "none" for names in self[:2])
        return f"{written} -> {read}: {self.before} -> {self.after}"

    def as_json(self) -> dict[str, Any]:
        """Return what trace.json keeps."""
        return {
            "writers": list(self.writers),
            "readers": list(self.readers),
            "before": self.before,
            "after": self.after,
        }


class Removed(NamedTuple):
    """The dimensions that lost entries, and which shares of its inputs each layer lost.

    `shares` has one number for each of the `dimensions_read` of a layer.
    """

    groups: tuple[Group, ...] = ()
    shares: Mapping[str, tuple[float, ...]] = {}


def removed(before: Graph, after: Graph) -> Removed:
    """Say which dimensions of a graph have fewer entries in the graph that was made of it.

    A dimension is compared where it is an axis of its own, in tensors that both graphs have;
    it has lost entries where all of them say so.
    """
    old, new = before.constants(), after.constants()
    if all(old[name].shape == new[name].shape for name in old.keys() & new.keys()):
        return Removed()
    couplings = Couplings(before)
    shapes = {name: tensor.shape for name, tensor in after.gs.tensors().items()}
    lost = {}
    for dimension, places in couplings.places.items():
        own = [(n, a) for n, a in places if couplings.dimension(n, a) == [dimension]]
        counts = {shapes[name][axis] for name, axis in own if shapes.get(name)}
        count = counts.pop() if len(counts) == 1 else dimension.size
        if isinstance(count, int) and count < dimension.size:
            lost[dimension] = count
    if not lost:
        return Removed()
    layers = list(linear_layers(before))
    read = {layer.name: dimensions_read(couplings, layer) for layer in layers}
    groups = tuple(
        Group(
            tuple(layer.name for layer in layers if dimension in _written(couplings, layer)),
            tuple(layer.name for layer in layers if dimension in read[layer.name]),
            dimension.size,
            count,
        )
        for dimension, count in lost.items()
    )
    shares = {
        name: tuple(1 - lost.get(d, d.size) / d.size for d in dimensions)
        for name, dimensions in read.items()
        if lost.keys() & set(dimensions)
    }
    return Removed(groups, shares)


def dimensions_read(couplings: Couplings, layer: Layer) -> list[Dimension]:
    """Return the dimensions that a layer adds up over, from the slowest to the fastest.

    Those of which nothing can go, such as the taps of a convolution, are left out.
    """
    return [
        d for d in dict.fromkeys(leaves(_columns(couplings, layer))) if d in couplings.places
    ]


def columns_of(couplings: Couplings, layer: Layer, dimension: Dimension) -> np.ndarray:
    """Return the columns of a layer's matrix that meet each entry: (entries, columns)."""
    return entries_of(_columns(couplings, layer), dimension)


def entries_of(extent: Extent, dimension: Dimension) -> np.ndarray:
    """Return which of an extent's entries meet each of a dimension's: (entries, places).

    The extent may be made of other dimensions too.
    """
    each = [indices(extent, {dimension: np.array([i])}) for i in range(dimension.size)]
    # Columns of other parts of a Concat meet every entry, which is to say none.
    others = np.intersect1d(each[0], each[-1])
    return np.array([np.setdiff1d(columns, others) for columns in each])


def _columns(couplings: Couplings, layer: Layer) -> Extent:
    axes = couplings.of(layer.weight)
    return product([e for axis, e in enumerate(axes) if axis != layer.output_axis])


def _written(couplings: Couplings, layer: Layer) -> list[Dimension]:
    return list(leaves(couplings.of(layer.weight)[layer.output_axis]))
