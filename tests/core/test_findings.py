"""Findings: kept one by one, found again by question and item."""

from pathlib import Path

import pytest

from tilewright.errors import UnusableInput
from tilewright.findings import Findings


def test_values_are_found_by_question_and_item(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "deep" / "searches.sqlite", "a model")
    assert findings.find("error") is None
    findings.keep("error", 0.1)
    findings.keep("error", [0.25, float("inf")])
    assert findings.find("error") == [0.25, float("inf")]
    assert findings.find("another") is None
    assert Findings(findings.path, "another model").find("error") is None


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "searches.sqlite"
    path.write_bytes(b"not a database, but long enough to have a header" * 100)
    before = path.read_bytes()
    with pytest.raises(UnusableInput, match="Remove the file"):
        Findings(path, "a model").find("error")
    assert path.read_bytes() == before
