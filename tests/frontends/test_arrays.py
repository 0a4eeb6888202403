from pathlib import Path

import numpy as np
import pytest

from tilewright.errors import UnusableInput
from tilewright.frontends.arrays import read_arrays


def test_an_archive_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.arange(6).reshape(3, 2))
    assert read_arrays(tmp_path / "c.npz")["x"].shape == (3, 2)


def test_a_folder_of_archives_is_joined_in_the_order_of_names(tmp_path: Path) -> None:
    for name, value in (("b", 2), ("a", 1), ("c", 3)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((1, 2), value))
    np.testing.assert_array_equal(read_arrays(tmp_path)["x"][:, 0], [1, 2, 3])


def test_a_folder_of_single_arrays_has_one_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.zeros((2, 4)))
    np.save(tmp_path / "mask.npy", np.ones((2, 4)))
    assert sorted(read_arrays(tmp_path)) == ["ids", "mask"]


def test_what_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="does not exist"):
        read_arrays(tmp_path / "none.npz")
    with pytest.raises(UnusableInput, match="holds no samples"):
        read_arrays(tmp_path)
    np.savez(tmp_path / "c.npz")
    with pytest.raises(UnusableInput, match="holds no arrays"):
        read_arrays(tmp_path / "c.npz")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.array([{}], dtype=object))
    with pytest.raises(UnusableInput, match="cannot be read: Object arrays cannot be loaded"):
        read_arrays(tmp_path / "c.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04cut"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(UnusableInput, match=r"cannot be read: .*Write it with np.savez"):
        read_arrays(tmp_path / "c.npz")


def test_files_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 2)))
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 3)))
    with pytest.raises(UnusableInput, match='the arrays "x" of its files do not stack'):
        read_arrays(tmp_path)
    np.savez(tmp_path / "b.npz", y=np.zeros((1, 2)))
    with pytest.raises(UnusableInput, match=r"b.npz.* holds \['y'\], but \"a.npz\" holds"):
        read_arrays(tmp_path)
    np.save(tmp_path / "c.npy", np.zeros(1))
    with pytest.raises(UnusableInput, match="Keep one kind"):
        read_arrays(tmp_path)
