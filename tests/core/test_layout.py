import pytest

from tilewright.layout import Layout, Pattern, Tile, parse_layout


@pytest.mark.parametrize("layout", [Tile(4), Tile(32, 2), Pattern(2, 4), Pattern(1, 16)])
def test_what_is_written_is_read(layout: Layout) -> None:
    assert parse_layout(str(layout)) == layout


@pytest.mark.parametrize("text", ["4", "4x", "0x1", "4x1x1", "2:", "2:2", "0:4", "4:2", "a:b"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"literal|unpack|{text}"):
        parse_layout(text)


def test_a_grid_counts_tiles_that_are_cut_off() -> None:
    assert Tile(4, 3).grid((9, 9)) == (3, 3)


def test_groups_run_along_channels_and_the_last_keeps_its_share() -> None:
    of, limits = Pattern(2, 4).groups(14, taps=2)
    # Seven channels of two taps: a group of four and one of three, at each tap.
    assert of.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]
    assert limits.tolist() == [2, 2, 1, 1]
