import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tilewright.targets.kernels.pen import Isa, vector_starts
from tilewright.targets.lower.tiles import (
    PackedTiles,
    dense_steps,
    pack_for_channels,
    pack_for_positions,
    sparse_steps,
)

AVX2 = Isa("avx2", "x86-64-v3", 8, 16)
# Zeros in three quarters of the places, so that rows share patterns and some are empty.
MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5]),
)


def unpacked_positions(packed: PackedTiles, shape: tuple[int, int]) -> np.ndarray:
    """Rebuild the matrix the way the kernel walks it; offsets are column numbers here."""
    matrix = np.zeros(shape, np.float32)
    for height, (start, count) in zip(packed.heights, packed.groups, strict=True):
        for tile in range(start, start + count):
            values, offsets, rows, steps = packed.table[tile]
            for p in range(steps):
                for r in range(height):
                    value = packed.values[values + p * height + r]
                    matrix[packed.rows[rows + r], packed.offsets[offsets + p]] = value
    return matrix


def unpacked_channels(packed: PackedTiles, shape: tuple[int, int], isa: Isa) -> np.ndarray:
    matrix = np.zeros(shape, np.float32)
    for height, (start, count) in zip(packed.heights, packed.groups, strict=True):
        lanes = isa.width_for(height)
        vectors = len(vector_starts(height, lanes))
        for tile in range(start, start + count):
            values, offsets, rows, steps = packed.table[tile]
            for p in range(steps):
                column = packed.offsets[offsets + p]
                for v in range(vectors):
                    at = values + (p * vectors + v) * lanes
                    first = packed.rows[rows + v]
                    matrix[first : first + lanes, column] = packed.values[at : at + lanes]
    return matrix


@pytest.mark.parametrize("dense", [False, True])
@settings(deadline=None, max_examples=50)
@given(matrix=MATRICES)
def test_packing_for_positions_and_unpacking_gives_the_matrix(
    matrix: np.ndarray, dense: bool
) -> None:
    columns = np.arange(matrix.shape[1])
    packed = pack_for_positions(matrix, columns, 4, dense)
    np.testing.assert_array_equal(unpacked_positions(packed, matrix.shape), matrix)
    kept = matrix.size if dense else np.count_nonzero(matrix)
    # A stray zero inside a tile is computed: at most one step in twenty.
    assert kept <= packed.steps <= (kept if dense else 1.05 * kept)


@pytest.mark.parametrize("dense", [False, True])
@settings(deadline=None, max_examples=50)
@given(matrix=MATRICES, rows_each=st.sampled_from([8, 32, 64]))
def test_packing_for_channels_and_unpacking_gives_the_matrix(
    matrix: np.ndarray, rows_each: int, dense: bool
) -> None:
    columns = np.arange(matrix.shape[1])
    packed = pack_for_channels(matrix, columns, AVX2, rows_each, dense)
    np.testing.assert_array_equal(unpacked_channels(packed, matrix.shape, AVX2), matrix)


@settings(deadline=None, max_examples=50)
@given(matrix=MATRICES)
def test_every_row_is_stored_once_even_where_it_is_all_zeros(matrix: np.ndarray) -> None:
    packed = pack_for_positions(matrix, np.arange(matrix.shape[1]), 4, dense=False)
    assert sorted(packed.rows.tolist()) == list(range(matrix.shape[0]))
    assert list(packed.heights) == sorted(set(packed.heights), reverse=True)
    assert packed.groups[:, 1].sum() == len(packed.table)


def test_rows_of_one_zero_pattern_share_a_tile_wherever_they_stand() -> None:
    even, odd = [1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 4.0]
    matrix = np.array([even, odd, even, odd, even], np.float32)
    packed = pack_for_positions(matrix, np.arange(4), 4, dense=False)
    assert packed.rows.tolist() == [0, 2, 4, 1, 3]
    assert packed.heights == (3, 2)
    assert packed.groups.tolist() == [[0, 1], [1, 1]]
    assert packed.table[:, 3].tolist() == [2, 2]


def test_a_tile_of_channels_keeps_the_columns_that_any_of_its_rows_needs() -> None:
    matrix = np.zeros((16, 6), np.float32)
    matrix[0, 1] = matrix[7, 4] = 1.0
    matrix[9, 2] = 1.0
    packed = pack_for_channels(matrix, np.arange(6), AVX2, 8, dense=False)
    assert packed.table[:, 3].tolist() == [2, 1]
    assert packed.offsets[:3].tolist() == [1, 4, 2]


def test_a_dense_layer_has_one_list_of_offsets() -> None:
    matrix = np.ones((130, 50), np.float32)
    packed = pack_for_positions(matrix, np.arange(50), 4, dense=True)
    # One entry more: an array is never empty.
    assert packed.offsets.size == 51
    assert len({int(row[1]) for row in packed.table}) == 1


def test_a_matrix_of_zeros_has_tiles_without_steps() -> None:
    packed = pack_for_positions(np.zeros((5, 3), np.float32), np.arange(3), 4, dense=False)
    assert packed.table[:, 3].tolist() == [0, 0]
    assert packed.steps == 0


def test_zeros_in_common_columns_are_cheaper_than_scattered_ones() -> None:
    tiled = np.ones((8, 16), np.float32)
    tiled[:, ::2] = 0.0
    scattered = np.ones((8, 16), np.float32)
    for row in range(8):
        scattered[row, (np.arange(8) * 3 + row) % 16] = 0.0
    assert sparse_steps(tiled, 4) == dense_steps(tiled, 4) / 2
    assert sparse_steps(scattered, 4) > sparse_steps(tiled, 4)


def test_a_stray_zero_in_a_kept_tile_does_not_split_it() -> None:
    matrix = np.ones((4, 40), np.float32)
    matrix[:, 1::2] = 0.0
    matrix[2, 6] = 0.0
    packed = pack_for_positions(matrix, np.arange(40), 4, dense=False)
    assert packed.heights == (4,)
    assert packed.table[:, 3].tolist() == [20]


@pytest.mark.parametrize("stray", [0.0, 0.02])
def test_rows_that_were_pruned_together_are_found_wherever_they_stand(stray: float) -> None:
    """Ten groups of four rows with a mask each, shuffled; some kept weights are zero too."""
    r = np.random.default_rng(0)
    groups = r.permutation(np.repeat(np.arange(10), 4))
    masks = np.stack([r.permutation(np.arange(100) < 40) for _ in range(10)])
    kept = masks[groups] & (r.random((40, 100)) >= stray)
    packed = pack_for_positions(kept.astype(np.float32), np.arange(100), 4, dense=False)
    assert packed.heights == (4,)
    found = [set(groups[packed.rows[at : at + 4]]) for at in packed.table[:, 2]]
    assert all(len(group) == 1 for group in found)
    assert len(found) == 10
    np.testing.assert_array_equal(unpacked_positions(packed, kept.shape), kept)


def test_rows_without_common_zeros_stay_apart() -> None:
    """And the search for likeness ends: rows are compared with all others a few times only."""
    matrix = (np.random.default_rng(0).random((64, 80)) < 0.5).astype(np.float32)
    packed = pack_for_positions(matrix, np.arange(80), 4, dense=False)
    assert packed.heights == (1,)
    assert packed.steps == np.count_nonzero(matrix)
