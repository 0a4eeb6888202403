"""Findings: kept one by one, found again by question and item."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tilewright.errors import UnusableInput
from tilewright.findings import Findings


def test_values_are_found_by_question_and_item(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "deep" / "searches.sqlite", "a model")
    assert findings.find("error") is None
    assert not findings.any()
    findings.keep("error", 0.1)
    assert findings.any()
    findings.keep("error", [0.25, float("inf")])
    assert findings.find("error") == [0.25, float("inf")]
    assert findings.find("another") is None
    another = Findings(findings.path, "another model")
    assert another.find("error") is None
    assert not another.any()


def test_a_question_that_was_left_for_30_days_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day, path = 24 * 3600, tmp_path / "searches.sqlite"
    left, visited = Findings(path, "left"), Findings(path, "visited")
    for days, question in ((0, left), (0, visited), (20, visited), (31, Findings(path, "new"))):
        monkeypatch.setattr("time.time", lambda days=days: 1e9 + days * day)
        question.keep(f"day {days}", days)
    assert left.find("day 0") is None
    assert visited.find("day 0") == 0
    assert visited.find("day 20") == 20


def test_files_from_before_days_were_counted_are_read_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "searches.sqlite"
    old = Findings(path, "old")
    old.keep("error", 0.1)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE last")
    Findings(path, "new").keep("error", 0.2)
    assert old.find("error") == 0.1


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "searches.sqlite"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    before = path.read_bytes()
    with pytest.raises(UnusableInput, match="Remove the file"):
        Findings(path, "a model").find("error")
    assert path.read_bytes() == before
