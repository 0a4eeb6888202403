"""The folder that `device build` writes, with programs that are made up."""

from pathlib import Path

import pytest

from tests.tools.conftest import Cli
from tilewright.targets.board import make

PROGRAMS = ("tilewright-run", "tilewright-server")


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = tmp_path_factory.mktemp("made")
    for name in PROGRAMS:
        (made / name).write_text("new")
    monkeypatch.setattr(make, "board_programs", lambda *_: made)


BUILD = ("device", "build", "--target", "arm-edge", "-o")


def test_programs_that_lie_there_are_replaced_and_nothing_else_is_there(run: Cli) -> None:
    for _ in range(2):
        assert run(*BUILD, "programs").code == 0
        assert sorted(path.name for path in Path("programs").iterdir()) == list(PROGRAMS)
        assert Path("programs/tilewright-run").read_text() == "new"
        Path("programs/tilewright-run").write_text("old")


@pytest.mark.parametrize("name", ["model.npz", "folder/"])
def test_a_folder_with_programs_and_something_of_the_users_is_refused_and_stays(
    run: Cli, name: str
) -> None:
    assert run(*BUILD, "programs").code == 0
    Path("programs/tilewright-run").write_text("old")
    mine = Path("programs") / name
    mine.mkdir() if name.endswith("/") else mine.write_text("mine")
    ended = run(*BUILD, "programs")
    assert (ended.code, ended.out) == (2, "")
    assert f'"programs" holds something else, such as "{mine.name}"' in ended.err
    assert mine.exists()
    assert Path("programs/tilewright-run").read_text() == "old"


def test_a_file_and_a_place_that_cannot_be_written_are_refused_with_what_to_do(
    run: Cli,
) -> None:
    Path("file").write_text("mine")
    ended = run(*BUILD, "file")
    assert ended.code == 2
    assert 'Output "file" is no folder. Give a new one with --output.' in ended.err
    ended = run(*BUILD, "file/programs")
    assert ended.code == 2
    assert "Give another place with --output." in ended.err
    assert "cache" not in ended.err
    assert Path("file").read_text() == "mine"


def test_a_link_to_a_folder_stays_a_link(run: Cli) -> None:
    Path("there").mkdir()
    Path("link").symlink_to("there")
    assert run(*BUILD, "link").code == 0
    assert Path("link").is_symlink()
    assert Path("there/tilewright-run").read_text() == "new"
