from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.targets.kernels.blocks import Nest, Strides, cut
from tilewright.targets.kernels.pen import vector_starts

LANES = st.sampled_from([1, 4, 8, 16])


def starts(nest: Nest) -> list[tuple[int, int]]:
    """Return the row and first column of every vector that a nest walks."""
    return [
        (nest.y0 + i * nest.y_step + dy, nest.x0 + j * nest.x_step + dx)
        for i in range(nest.rows)
        for j in range(nest.columns)
        for dy, dx in nest.places
    ]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 20), st.integers(1, 150), LANES, st.integers(1, 14))
def test_blocks_cover_every_position_and_none_outside(
    height: int, width: int, lanes: int, most: int
) -> None:
    width = max(width, lanes)
    nests = cut(height, width, lanes, most)
    covered = {
        (y, x + lane) for nest in nests for y, x in starts(nest) for lane in range(lanes)
    }
    assert covered == {(y, x) for y in range(height) for x in range(width)}
    assert all(len(nest.places) <= most for nest in nests)


def test_thirteen_vectors_with_at_most_six_a_block_become_blocks_of_5_4_and_4() -> None:
    nests = cut(1, 13 * 8, 8, 6)
    assert [(n.columns, len(n.places)) for n in nests] == [(1, 5), (2, 4)]


def test_short_rows_share_a_block() -> None:
    (whole, rest) = cut(7, 14, 8, 6)
    # Two vectors cover 14 columns, the second one from column 6 on; three rows make a block.
    assert (whole.rows, whole.places) == (2, ((0, 0), (0, 6), (1, 0), (1, 6), (2, 0), (2, 6)))
    assert (rest.y0, rest.places) == (6, ((0, 0), (0, 6)))


@settings(deadline=None, max_examples=100)
@given(LANES, st.integers(0, 70))
def test_the_last_vector_moves_back_over_its_neighbour(lanes: int, more: int) -> None:
    extent = lanes + more
    first = vector_starts(extent, lanes)
    assert {s + i for s in first for i in range(lanes)} == set(range(extent))
    assert len(first) == -(-extent // lanes)


def test_strides_of_zero_are_not_written() -> None:
    assert Strides(0, 0, 0, 0).at(5, 6, 7, 8) == 0
    assert Strides(100, 10, 0, 1).at(1, 2, 3, 4) == 124
