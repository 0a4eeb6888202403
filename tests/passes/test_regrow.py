"""Which tiles stay, and which come back for others."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tilewright.layout import Tile
from tilewright.passes.heal.regrow import exchanged, largest, mean_squares

sizes = st.integers(1, 9)


@settings(deadline=None)
@given(sizes, sizes, st.integers(1, 4), st.integers(1, 4))
def test_the_mean_square_of_a_tile_counts_no_more_than_there_is(
    rows: int, columns: int, height: int, width: int
) -> None:
    matrix = normal(rows, columns)
    found = mean_squares(matrix, Tile(height, width))
    for (i, j), value in np.ndenumerate(found):
        part = matrix[i * height : (i + 1) * height, j * width : (j + 1) * width]
        np.testing.assert_allclose(value, np.square(part, dtype=float).mean(), rtol=1e-12)


@settings(deadline=None)
@given(sizes, sizes, sizes, st.floats(0, 1), st.integers(0, 99))
def test_so_many_of_all_tiles_go_as_were_asked_for_and_every_row_keeps_its_largest(
    rows: int, columns: int, others: int, sparsity: float, seed: int
) -> None:
    scores = [np.abs(normal(rows, columns, seed=seed)), np.abs(normal(others, 5, seed=seed))]
    kept = largest(scores, sparsity)
    tiles = rows * columns + others * 5
    gone = sum(int((~k).sum()) for k in kept)
    assert gone == min(round(sparsity * tiles), tiles - rows - others)
    for score, mask in zip(scores, kept, strict=True):
        assert mask[np.arange(len(score)), score.argmax(axis=1)].all()


def test_layers_compete_with_each_other() -> None:
    small, large = np.array([[1.0, 2, 3], [4, 5, 6]]), np.array([[7.0, 8, 9]])
    kept = largest([small, large], 4 / 9)
    np.testing.assert_array_equal(kept[0], [[False, False, True], [False, False, True]])
    assert kept[1].all()


@settings(deadline=None)
@given(sizes, sizes, st.floats(0, 0.95), st.floats(0, 1), st.integers(0, 99))
def test_as_many_tiles_come_back_as_are_dropped_and_no_row_is_left_without(
    rows: int, columns: int, sparsity: float, share: float, seed: int
) -> None:
    magnitudes, gradients = (np.abs(normal(rows, columns, seed=s)) for s in (seed, seed + 1))
    (kept,) = largest([magnitudes], sparsity)
    after = exchanged(kept, np.where(kept, magnitudes, 0), gradients, share)
    assert after.sum() == kept.sum()
    assert after.any(axis=1).all()
    # Of what was at zero before, none that came back had a smaller gradient than one that
    # did not.
    came, stayed = gradients[after & ~kept], gradients[~after & ~kept]
    assert not came.size or not stayed.size or came.min() > stayed.max()


def test_the_smallest_make_room_for_those_with_the_largest_gradients() -> None:
    kept = np.array([[True, True, True, True, False, False, False, False]])
    magnitudes = np.array([[4.0, 1, 2, 3, 0, 0, 0, 0]])
    gradients = np.array([[9.0, 1, 2, 9, 5, 7, 3, 4]])
    after = exchanged(kept, magnitudes, gradients, 0.5)
    np.testing.assert_array_equal(
        after[0], [True, False, False, True, True, True, False, False]
    )


def test_what_was_dropped_competes_with_what_was_at_zero_before() -> None:
    kept = np.array([[True, True, False]])
    after = exchanged(kept, np.array([[2.0, 1, 0]]), np.array([[0.0, 8, 7]]), 0.5)
    np.testing.assert_array_equal(after, kept)


def test_what_has_no_gradient_does_not_come_back() -> None:
    kept = np.array([[True, True, True, True, False, False]])
    magnitudes = np.array([[4.0, 3, 2, 1, 0, 0]])
    for gradients in ([[0.0, 0, 0, 0, 0, 0]], [[9.0, 9, 9, 0, 0, 1]]):
        after = exchanged(kept, magnitudes, np.array(gradients), 0.5)
        assert after.sum() == 4
        assert after[0, 4] == 0
    np.testing.assert_array_equal(after[0], [True, True, True, False, False, True])


def test_without_a_share_nothing_is_exchanged() -> None:
    kept = normal(5, 6) > 0
    kept[:, 0] = True
    after = exchanged(kept, np.abs(normal(5, 6)), np.abs(normal(5, 6, seed=1)), 0.0)
    np.testing.assert_array_equal(after, kept)
