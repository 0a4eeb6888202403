"""Dimensions: what the axes of tensors are made of, in sums and products.

A row of features may be `heads x depth`, the axis behind a Concat `left + right`. Two axes that
an operator makes the same are unified: where one says more than the other, the coarser is
written in terms of the finer. What is left of this are dimensions, each of which runs through
many tensors and can be selected from, or permuted, in all of them at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import numpy as np


@dataclass(eq=False)
class Dimension:
    """So many entries that mean the same wherever they occur.

    `fixed` says why their number and order must stay as they are, `counted` why their number
    must ("" where they need not). `means` is what unification has found it to be, if anything.
    """

    size: int
    fixed: str = ""
    counted: str = ""
    means: "Extent | None" = None


@dataclass(frozen=True)
class Sum:
    """Parts one behind the other."""

    parts: tuple["Extent", ...]


@dataclass(frozen=True)
class Product:
    """For each entry of a factor all entries of the factors behind it."""

    factors: tuple["Extent", ...]


Extent = Dimension | Sum | Product


def size_of(extent: Extent) -> int:
    """Return the number of entries."""
    extent = resolved(extent)
    if isinstance(extent, Sum):
        return sum(map(size_of, extent.parts))
    if isinstance(extent, Product):
        return prod(map(size_of, extent.factors))
    return extent.size


def resolved(extent: Extent) -> Extent:
    """Look through what dimensions were found to mean."""
    while isinstance(extent, Dimension) and extent.means is not None:
        extent = extent.means
    return extent


def leaves(extent: Extent) -> Iterator[Dimension]:
    """Walk the dimensions that an extent is made of."""
    extent = resolved(extent)
    if isinstance(extent, Dimension):
        yield extent
        return
    for part in extent.parts if isinstance(extent, Sum) else extent.factors:
        yield from leaves(part)


def freeze(extent: Extent, reason: str) -> None:
    """Keep number and order of all entries."""
    for leaf in leaves(extent):
        leaf.fixed = leaf.fixed or reason


def keep_count(extent: Extent, reason: str) -> None:
    """Keep the number of all entries."""
    for leaf in leaves(extent):
        leaf.counted = leaf.counted or reason


def product(factors: Sequence[Extent]) -> Extent:
    """Return a product without factors of one entry; of nothing it is one entry."""
    kept = [f for f in factors if size_of(f) != 1]
    if not kept:
        return Dimension(1)
    return kept[0] if len(kept) == 1 else Product(tuple(kept))


def total(parts: Sequence[Extent]) -> Extent:
    """Return a sum without empty parts."""
    kept = [p for p in parts if size_of(p)]
    return kept[0] if len(kept) == 1 else Sum(tuple(kept))


def unify(one: Extent, other: Extent) -> None:
    """Make two extents of one size the same; what cannot be written in one way is frozen."""
    one, other = resolved(one), resolved(other)
    if one is other:
        return
    assert size_of(one) == size_of(other), "only extents of one size can be the same"
    if isinstance(one, Dimension):
        _bind(one, other)
    elif isinstance(other, Dimension):
        _bind(other, one)
    elif isinstance(one, Product) and isinstance(other, Product):
        align(_factors(one), _factors(other))
    else:
        _align_parts(_parts(one), _parts(other))


def align(ones: list[Extent], others: list[Extent]) -> None:
    """Unify two products of one size, given by their factors."""
    ones, others = [list(reversed(_flat(f))) for f in (ones, others)]
    while ones and others:
        a, b = _next(ones), _next(others)
        if size_of(a) == size_of(b):
            unify(a, b)
            continue
        swapped = size_of(a) < size_of(b)
        large, small, rest = (b, a, others) if swapped else (a, b, ones)
        inner, odd = divmod(size_of(large), size_of(small))
        if odd or not isinstance(large, Dimension):
            for extent in (a, b, *ones, *others):
                freeze(extent, "two reshapes cut it in ways that do not fit")
            return
        behind = Dimension(inner)
        _bind(large, Product((lead := Dimension(size_of(small)), behind)))
        unify(lead, small)
        rest.append(resolved(behind))


def _next(factors: list[Extent]) -> Extent:
    """Take the last factor; what it has meanwhile been found to be a product of, one by one."""
    while isinstance(factor := resolved(factors.pop()), Product):
        factors += reversed(factor.factors)
    return factor


def indices(extent: Extent, chosen: Mapping[Dimension, np.ndarray]) -> np.ndarray:
    """Return the entries that are left, in their new order, if `chosen` are dimensions' own."""
    extent = resolved(extent)
    if isinstance(extent, Dimension):
        return chosen.get(extent, np.arange(extent.size))
    if isinstance(extent, Sum):
        starts = np.cumsum([0, *map(size_of, extent.parts)])
        parts = [indices(p, chosen) + s for p, s in zip(extent.parts, starts, strict=False)]
        return np.concatenate(parts)
    each = (indices(f, chosen) for f in extent.factors)
    sizes = map(size_of, extent.factors)
    pairs = zip(each, sizes, strict=True)
    first, _ = next(pairs)
    return reduce(lambda all_, f: (all_[:, None] * f[1] + f[0]).reshape(-1), pairs, first)


def _bind(dimension: Dimension, extent: Extent) -> None:
    for leaf in leaves(extent):
        leaf.fixed = leaf.fixed or dimension.fixed
        leaf.counted = leaf.counted or dimension.counted
    dimension.means = extent


def _flat(factors: Sequence[Extent]) -> list[Extent]:
    """Return factors that are no products themselves, none of them of one entry."""
    found: list[Extent] = []
    for factor in map(resolved, factors):
        if isinstance(factor, Product):
            found += _flat(factor.factors)
        elif size_of(factor) != 1:
            found.append(factor)
    return found


def _factors(extent: Extent) -> list[Extent]:
    return list(extent.factors) if isinstance(extent, Product) else [extent]


def _parts(extent: Extent) -> list[Extent]:
    """Return parts that are no sums themselves."""
    extent = resolved(extent)
    if not isinstance(extent, Sum):
        return [extent]
    return [p for part in extent.parts for p in _parts(part)]


def _align_parts(ones: list[Extent], others: list[Extent]) -> None:
    ones, others = ones[::-1], others[::-1]
    while ones and others:
        a, b = ones.pop(), others.pop()
        if size_of(a) == size_of(b):
            unify(a, b)
            continue
        swapped = size_of(a) < size_of(b)
        large, small, rest = (b, a, others) if swapped else (a, b, ones)
        cut = _cut(large, size_of(small))
        if cut is None:
            for extent in (a, b, *ones, *others):
                freeze(extent, "it is joined of parts that do not fit")
            return
        unify(cut[0], small)
        rest.append(cut[1])


def _cut(extent: Extent, first: int) -> tuple[Extent, Extent] | None:
    """Return the first entries and the rest, or None where no dimension can be cut so."""
    factors = _flat([extent])
    lead, behind = factors[0], factors[1:]
    count, odd = divmod(first, prod(map(size_of, behind)))
    if odd or not isinstance(lead, Dimension):
        return None
    left, right = Dimension(count), Dimension(lead.size - count)
    _bind(lead, Sum((left, right)))
    return product([left, *behind]), product([right, *behind])
