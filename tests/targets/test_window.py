import math
from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.targets.lower.window import Buffer, Window, collapse, compact

EXTENTS = st.integers(1, 4)
SHAPES = st.lists(EXTENTS, min_size=0, max_size=4).map(tuple)


def memory(window: Window) -> np.ndarray:
    return np.arange(window.buffer.elements)


def shown(window: Window, values: np.ndarray) -> np.ndarray:
    """Return what a window shows of a flat memory, by numpy."""
    strides = [s * values.itemsize for s in window.strides]
    return np.lib.stride_tricks.as_strided(values[window.offset :], window.shape, strides)


@st.composite
def compact_windows(draw: st.DrawFn, shapes: st.SearchStrategy = SHAPES) -> Window:
    shape = draw(shapes)
    order = draw(st.permutations(range(len(shape))))
    return compact(Buffer("x", "float32", math.prod(shape)), shape, order)


def sliced(draw: st.DrawFn, window: Window, like: np.ndarray) -> tuple[Window, np.ndarray]:
    axis = draw(st.integers(0, len(window.shape) - 1))
    start = draw(st.integers(0, window.shape[axis] - 1))
    step = draw(st.sampled_from([1, 2, -1, -2]))
    places = range(start, window.shape[axis] if step > 0 else -1, step)
    taken = window.sliced(axis, start, len(places), step)
    return taken, np.take(like, list(places), axis)


def transposed(draw: st.DrawFn, window: Window, like: np.ndarray) -> tuple[Window, np.ndarray]:
    perm = draw(st.permutations(range(len(window.shape))))
    return window.transposed(perm), like.transpose(perm)


def broadcast(draw: st.DrawFn, window: Window, like: np.ndarray) -> tuple[Window, np.ndarray]:
    lead = draw(st.lists(EXTENTS, max_size=1))
    shape = [*lead, *(draw(EXTENTS) if n == 1 else n for n in window.shape)]
    return window.broadcast(shape), np.broadcast_to(like, shape)


Move = Callable[[st.DrawFn, Window, np.ndarray], tuple[Window, np.ndarray]]


@st.composite
def moved_windows(draw: st.DrawFn) -> tuple[Window, np.ndarray]:
    """Return a window after some moves, and what numpy makes of the same moves."""
    window = draw(compact_windows())
    like = shown(window, memory(window))
    moves: list[Move] = draw(
        st.lists(st.sampled_from([sliced, transposed, broadcast]), max_size=4)
    )
    for move in moves:
        if window.shape:
            window, like = move(draw, window, like)
    return window, like


@settings(deadline=None, max_examples=100)
@given(moved_windows())
def test_slices_transposes_and_broadcasts_show_what_numpy_shows(
    case: tuple[Window, np.ndarray],
) -> None:
    window, like = case
    np.testing.assert_array_equal(shown(window, memory(window)), like)


@settings(deadline=None, max_examples=100)
@given(moved_windows(), st.data())
def test_a_reshape_shows_what_numpy_shows_or_says_that_elements_would_move(
    case: tuple[Window, np.ndarray], data: st.DataObject
) -> None:
    window, _ = case
    factors = [n for n in window.shape if n > 1] + [1]
    cuts = data.draw(st.lists(st.integers(0, len(factors)), max_size=3).map(sorted))
    parts = zip([0, *cuts], [*cuts, len(factors)], strict=True)
    target = tuple(math.prod(factors[a:b]) for a, b in parts)
    values = memory(window)
    plain = shown(window, values)
    expected = plain.reshape(target)
    found = window.reshaped(target)
    # numpy copies exactly where no strides can show the new shape.
    assert (found is not None) == np.shares_memory(expected, plain)
    if found is not None:
        np.testing.assert_array_equal(shown(found, values), expected)


def test_a_reshape_that_splits_an_axis_needs_no_copy() -> None:
    rows = compact(Buffer("x", "float32", 24), (2, 12))
    halves = rows.reshaped((2, 3, 4))
    assert halves is not None
    assert halves.strides == (12, 4, 1)
    assert rows.transposed((1, 0)).reshaped((24,)) is None


def test_order_names_the_axes_from_slow_to_fast_and_leaves_extents_of_one_in_place() -> None:
    window = compact(Buffer("x", "float32", 24), (4, 1, 3, 2), order=(3, 2, 1, 0))
    assert window.strides == (1, 4, 4, 12)
    assert window.order == (3, 1, 2, 0)


def addresses(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    flat = [range(0, n * s, s) if s else [0] * n for n, s in zip(shape, strides, strict=True)]
    places = [0]
    for steps in flat:
        places = [p + step for p in places for step in steps]
    return places


@settings(deadline=None, max_examples=100)
@given(moved_windows(), st.permutations(range(4)))
def test_collapsed_axes_walk_the_same_addresses_in_the_same_order(
    case: tuple[Window, np.ndarray], perm: list[int]
) -> None:
    window, _ = case
    axes = [a for a in perm if a < len(window.shape)]
    other = compact(Buffer("y", "float32", window.size), window.shape, axes)
    rows = [window.strides, other.strides]
    dims, steps = collapse(window.shape, rows)
    assert len(dims) <= max(1, len(window.shape))
    for row, step in zip(rows, steps, strict=True):
        assert addresses(dims, step) == addresses(window.shape, row)


def test_collapse_keeps_apart_what_one_operand_walks_unevenly() -> None:
    assert collapse((2, 3, 4), [(12, 4, 1)]) == ((24,), [(1,)])
    assert collapse((2, 3, 4), [(12, 4, 1), (0, 4, 1)]) == ((2, 12), [(12, 1), (0, 1)])
    assert collapse((1, 1), [(7, 9)]) == ((1,), [(1,)])
