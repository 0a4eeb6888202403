import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import normal, two_layers
from tilewright.errors import UnusableInput
from tilewright.protocol import silent
from tilewright.tools import engines
from tilewright.tools.engines import Engine, interpreter
from tilewright.tools.measure_engines import measure_engines


@pytest.fixture
def pips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Collect what is asked of pip, in environments that are empty folders."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        failed = "broken==1" in command
        said = "looking\nERROR: No matching distribution found" if failed else ""
        return subprocess.CompletedProcess(command, int(failed), "", said)

    def create(folder: Path, **_: object) -> None:
        folder.mkdir()

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("venv.create", create)
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    table = {
        "peer": Engine(tmp_path / "of_peer.py", "peer==2.0"),
        "broken": Engine(tmp_path / "of_broken.py", "broken==1"),
        "numpy": Engine(tmp_path / "of_numpy.py", "numpy==1.0"),
    }
    monkeypatch.setattr(engines, "ENGINES", table)
    return asked


def test_an_engine_that_is_installed_beside_us_runs_in_this_python(
    pips: list[list[str]],
) -> None:
    assert interpreter("numpy", silent) == sys.executable
    assert not pips


def test_another_engine_gets_an_environment_of_its_own_once(
    pips: list[list[str]], tmp_path: Path
) -> None:
    said: list[str] = []
    python = str(tmp_path / "engines" / "peer-2.0" / "bin" / "python")
    assert [interpreter("peer", said.append) for _ in range(2)] == [python, python]
    assert [command[-3:] for command in pips] == [["--only-binary", "peer", "peer==2.0"]]
    assert said == [f"installing peer==2.0 into {tmp_path / 'engines' / 'peer-2.0'}"]


def test_an_engine_that_pip_cannot_install_is_one_message_and_leaves_nothing(
    pips: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UnusableInput, match=r"broken==1, which pip .*: ERROR: No match"):
        interpreter("broken", silent)
    assert pips
    assert not list((tmp_path / "engines").iterdir())


def test_what_runs_in_another_environment_needs_no_tilewright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = tmp_path / "of_peer.py"
    peer.write_text(
        "import sys\n"
        "def version(): return '2.0'\n"
        "def open_engine(path, threads):\n"
        "    assert not any(m.startswith('tilewright') for m in sys.modules)\n"
        "    return lambda feeds: {'y': feeds['x']}\n"
    )
    monkeypatch.setattr(engines, "ENGINES", {"peer": Engine(peer)})
    model = two_layers(tmp_path / "m.onnx")
    contest = measure_engines({"peer": model}, {"x": normal(1, 8)}, threads=1, rounds=1)
    assert contest.versions == {"peer": "2.0"}
    assert contest.total("peer").min_ms > 0
