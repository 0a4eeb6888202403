"""Dimensions: what reshapes, joins and cuts find an axis to be made of."""

from math import prod
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilewright.dimensions import (
    Dimension,
    Extent,
    Sum,
    align,
    freeze,
    indices,
    keep_count,
    leaves,
    product,
    resolved,
    size_of,
    total,
    unify,
)


def sizes(extent: Extent) -> list[int]:
    return [leaf.size for leaf in leaves(extent)]


def test_features_that_are_cut_into_heads_are_heads_times_depth() -> None:
    features, heads, depth = Dimension(12), Dimension(3), Dimension(4)
    align([features], [heads, depth])
    assert list(leaves(features)) == [heads, depth]
    kept = indices(features, {heads: np.array([2, 0])})
    np.testing.assert_array_equal(kept, [8, 9, 10, 11, 0, 1, 2, 3])
    kept = indices(features, {depth: np.array([1])})
    np.testing.assert_array_equal(kept, [1, 5, 9])


def test_a_joined_axis_is_its_parts_one_behind_the_other() -> None:
    joined, left, right = Dimension(7), Dimension(3), Dimension(4)
    unify(joined, total([left, right]))
    assert list(leaves(joined)) == [left, right]
    np.testing.assert_array_equal(indices(joined, {right: np.array([3, 1])}), [0, 1, 2, 6, 4])


def test_halves_that_change_places_are_one_dimension_twice() -> None:
    depth, one, two = Dimension(6), Dimension(3), Dimension(3)
    unify(depth, Sum((one, two)))
    unify(Sum((two, one)), depth)
    assert len(set(leaves(depth))) == 1
    (half,) = set(leaves(depth))
    np.testing.assert_array_equal(indices(depth, {half: np.array([2])}), [2, 5])


def test_what_is_cut_twice_is_made_of_all_pieces() -> None:
    axis = Dimension(10)
    unify(axis, total([Dimension(4), Dimension(6)]))
    unify(axis, total([Dimension(2), Dimension(5), Dimension(3)]))
    assert sizes(axis) == [2, 2, 3, 3]


def test_a_product_is_cut_between_entries_of_its_first_factor() -> None:
    heads, depth = Dimension(5), Dimension(4)
    unify(product([heads, depth]), total([Dimension(8), Dimension(12)]))
    assert sizes(heads) == [2, 3]
    assert sizes(depth) == [4]
    assert not depth.fixed


def test_a_product_that_is_cut_within_an_entry_stays_as_it_is() -> None:
    heads, depth = Dimension(5), Dimension(4)
    unify(product([heads, depth]), total([Dimension(7), Dimension(13)]))
    assert all(leaf.fixed for leaf in (heads, depth))


def test_what_is_known_of_an_axis_holds_for_what_it_turns_out_to_be() -> None:
    axis, parts = Dimension(6), (Dimension(2), Dimension(3))
    freeze(axis, "callers see it")
    keep_count(axis, "it is normalized over")
    unify(axis, product(parts))
    assert {part.fixed for part in parts} == {"callers see it"}
    assert {part.counted for part in parts} == {"it is normalized over"}


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of one size, from two ways to group the same factors."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped() -> list[int]:
        ends = sorted(draw(st.sets(st.integers(1, len(factors)))) | {len(factors)})
        return [prod(factors[a:b]) for a, b in zip([0, *ends], ends, strict=False)]

    return grouped(), grouped()


@given(cuts(), st.randoms(use_true_random=False))
def test_a_reshape_keeps_the_order_of_what_is_left(
    shapes: tuple[list[int], list[int]], random: Random
) -> None:
    one, other = ([Dimension(n) for n in shape] for shape in shapes)
    align(list(one), list(other))
    chosen = {
        leaf: np.array(random.sample(range(leaf.size), random.randint(1, leaf.size)))
        for axis in one
        for leaf in leaves(axis)
    }
    values = np.arange(prod(shapes[0]))
    taken = values.reshape(shapes[0])
    for axis, extent in enumerate(one):
        taken = np.take(taken, indices(extent, chosen), axis)
    again = values.reshape(shapes[1])
    for axis, extent in enumerate(other):
        again = np.take(again, indices(extent, chosen), axis)
    np.testing.assert_array_equal(taken.reshape(-1), again.reshape(-1))
    assert [size_of(resolved(e)) for e in one] == shapes[0]
