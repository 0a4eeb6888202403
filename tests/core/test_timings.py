"""Timings: found again by what they hang on, refused where the file is damaged."""

import sqlite3
import threading
from pathlib import Path

import pytest

from tilewright.errors import UnusableInput
from tilewright.timings import Timings

WAYS = ("sparse", "dense")


def test_times_are_found_by_device_problem_and_ways(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "deep" / "timings.sqlite")
    timings.keep("cpu", "Conv", WAYS, (1.5, 2.25))
    assert timings.find("cpu", "Conv", WAYS) == (1.5, 2.25)
    assert timings.find("cpu", "Conv", WAYS[::-1]) is None
    assert timings.find("cpu", "Gemm", WAYS) is None
    assert timings.find("another", "Conv", WAYS) is None


def test_later_times_replace_earlier_ones(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "timings.sqlite")
    timings.keep("cpu", "Conv", WAYS, (1.5, 2.25))
    timings.keep("cpu", "Conv", WAYS, (3.0,))
    assert timings.find("cpu", "Conv", WAYS) == (3.0,)


def test_many_may_keep_times_at_once(tmp_path: Path) -> None:
    path = tmp_path / "timings.sqlite"

    def keep(number: int) -> None:
        for i in range(20):
            Timings(path).keep(f"cpu {number}", str(i), WAYS, (number, i))

    threads = [threading.Thread(target=keep, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(
        Timings(path).find(f"cpu {n}", str(i), WAYS) == (n, i)
        for n in range(4)
        for i in range(20)
    )


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "timings.sqlite"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    before = path.read_bytes()
    with pytest.raises(UnusableInput, match="Remove the file"):
        Timings(path).check()
    assert path.read_bytes() == before


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UnusableInput, match="format 99"):
        Timings(path).find("cpu", "Conv", WAYS)


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnusableInput, match="TILEWRIGHT_CACHE"):
        Timings(tmp_path / "file" / "timings.sqlite").check()
