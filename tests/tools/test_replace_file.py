"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from tilewright.errors import UnusableInput
from tilewright.tools.replace_file import replacing


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with replacing(file) as aside:
        aside.write_text("new")
        assert not file.exists()
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def fail_half_way(file: Path, error: type[BaseException] | OSError) -> None:
    with replacing(file) as aside:
        aside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "full")])
def test_what_was_there_stays_when_something_fails(
    tmp_path: Path, error: type[BaseException] | OSError
) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")
    kind = UnusableInput if isinstance(error, OSError) else error
    with pytest.raises(kind):
        fail_half_way(file, error)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    refused = pytest.raises(UnusableInput, match=r"none.* does not exist\. Create it")
    with refused, replacing(tmp_path / "none" / "plan.json"):
        raise AssertionError("the work began")


def test_a_folder_is_never_taken_for_a_file_to_write(tmp_path: Path) -> None:
    refused = pytest.raises(UnusableInput, match=r"is a folder. Give the name of a file")
    with refused, replacing(tmp_path):
        raise AssertionError("the work began")


def test_devices_and_pipes_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        refused = pytest.raises(
            UnusableInput, match=r"is a device or a pipe.*give --json the name"
        )
        with refused, replacing(tmp_path / name, "--json"):
            raise AssertionError("the work began")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_link_stays_one_and_what_it_leads_to_is_written(
    tmp_path: Path, old: str | None
) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "plan.json", tmp_path / "link"
    if old is not None:
        file.write_text(old)
    link.symlink_to(file)
    with replacing(link) as aside:
        aside.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == link.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_links_in_a_circle_lead_nowhere_and_give_way(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with replacing(tmp_path / "a") as aside:
        aside.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
