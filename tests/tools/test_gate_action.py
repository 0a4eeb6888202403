"""The GitHub Action of the gate: its scripts are run as a runner would, on fake backends."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.small_models import two_layers
from tests.tools.conftest import write_target
from tilewright.tools.cli import app

yaml = pytest.importorskip("yaml", reason="the extra [test] is not installed")

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "latency-gate" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

# What PATH calls tilewright, compile and python: the real command line, but made-up times.
PROGRAM = """#!{python}
import sys
from pathlib import Path
from tests.tools.conftest import made_up_times
from tests.tools.fake_backends import BACKENDS
from tilewright import targets
from tilewright.tools import cli, compile_model, time_run
name = Path(sys.argv[0]).name
with open("called", "a") as log:
    print(name, *sys.argv[1:], file=log)
if name == "python":
    sys.exit()
targets.BACKENDS = BACKENDS
compile_model.measure_engines = time_run.measure_engines = made_up_times
cli.main([*(["compile"] if name == "compile" else []), *sys.argv[1:]])
"""


def loaded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """Make a folder with the programs and the model of a base and a changed branch."""
    (tmp_path / "bin").mkdir()
    for name in ("tilewright", "compile", "python"):
        program = tmp_path / "bin" / name
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for folder in ("models", "base"):
        (tmp_path / folder).mkdir()
        two_layers(tmp_path / folder / "model.onnx")
    write_target(tmp_path)
    return tmp_path


def run_action(folder: Path, **given: str) -> tuple[int, str, list[str]]:
    """Run the action's steps; return the exit code, the step summary and what was called."""
    action = loaded(ACTION)
    inputs = {name: about["default"] for name, about in action["inputs"].items()}
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(folder),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    (folder / "summary.md").write_text("before\n")
    code = 0
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "what a pull request says must not become a script"
        own = {key: _resolved(text, inputs) for key, text in step["env"].items()}
        # As GitHub's runners call it.
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = subprocess.run(
            bash, cwd=folder, env={**environment, **own}, check=False
        ).returncode
        if code:
            break
    called = (folder / "called").read_text().splitlines()
    return code, (folder / "summary.md").read_text(), called


def _resolved(text: str, inputs: dict[str, str]) -> str:
    text = text.replace("${{ github.action_path }}", str(ACTION.parent))
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: inputs[match[1]], text)


def test_the_action_installs_compiles_both_models_and_compares_them(runner: Path) -> None:
    code, summary, called = run_action(
        runner,
        model="models/model.onnx",
        base_model="base/model.onnx",
        target="faithful.toml",
        compile_options="--sparsity 0 --seed 1",
        budget="150%",  # made-up times: what comes second takes twice as long
    )
    assert code == 0
    installed = called[0].removeprefix("python -m pip install --quiet ")
    assert installed.endswith("[zig]")
    assert Path(installed.removesuffix("[zig]")).resolve() == ROOT
    assert (ROOT / "pyproject.toml").is_file()
    options = "--target faithful.toml --no-eval --sparsity 0 --seed 1"
    assert called[1].startswith(f"compile models/model.onnx {options} -o")
    assert called[2].startswith(f"compile base/model.onnx {options} -o")
    assert summary.startswith("before\n### Latency gate: passed\n")
    assert (runner / "latency-gate.xml").is_file()


def test_the_action_fails_with_the_table_where_a_count_grew(runner: Path) -> None:
    base = onnx.load(runner / "base" / "model.onnx")
    zeros = np.zeros((8, 16), np.float32)
    base.graph.initializer[0].CopyFrom(numpy_helper.from_array(zeros, "w"))
    onnx.save(base, runner / "base" / "model.onnx")
    code, summary, _ = run_action(
        runner,
        model="models/model.onnx",
        base_model="base/model.onnx",
        target="faithful.toml",
        compile_options="--sparsity 0",
        budget="150%",
    )
    assert code == 1
    assert "### Latency gate: failed" in summary
    assert "| now.tw | nonzero_parameters | 80 | 208 | +160.0% |" in summary


def test_the_action_passes_on_that_it_was_used_wrongly(runner: Path) -> None:
    code, summary, _ = run_action(runner, artifact="none.tw", base="none.tw", install="")
    assert (code, summary) == (2, "before\n")


@pytest.mark.parametrize(("install", "pip"), [("", False), ("tilewright==1.0", True)])
def test_what_the_action_installs_may_be_something_else_or_nothing(
    runner: Path, install: str, pip: bool
) -> None:
    _, _, called = run_action(runner, artifact="none.tw", base="none.tw", install=install)
    assert (called[0] == f"python -m pip install --quiet {install}") == pip


@pytest.mark.parametrize("found", [True, False])
def test_the_example_skips_a_model_that_the_base_branch_lacks_and_says_so(
    tmp_path: Path, found: bool
) -> None:
    (tmp_path / "base" / "models").mkdir(parents=True)
    if found:
        (tmp_path / "base" / "models" / "model.onnx").touch()
    steps = loaded(ROOT / ".github/workflows/gate-models.yml")["jobs"]["gate"]["steps"]
    (look,) = (step for step in steps if step.get("id") == "base")
    output = tmp_path / "output"
    output.touch()
    ended = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", look["run"]],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_OUTPUT": str(output)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert output.read_text() == ("found=true\n" if found else "")
    assert ended.stdout.startswith("::notice::models/model.onnx is new") != found
    for step in steps[steps.index(look) + 1 :]:
        if "setup-python" not in step["uses"]:
            assert "steps.base.outputs.found == 'true'" in step["if"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_give_actions_only_inputs_that_they_have(path: Path) -> None:
    known = set(loaded(ACTION)["inputs"])
    steps = [step for job in loaded(path)["jobs"].values() for step in job["steps"]]
    given = [step["with"] for step in steps if "latency-gate" in step.get("uses", "")]
    assert given
    for inputs in given:
        assert set(inputs) <= known
        assert ("artifact" in inputs) == ("base" in inputs) != ("model" in inputs)


@pytest.mark.parametrize(
    "path",
    [ACTION, ROOT / ".github/workflows/ci.yml", ROOT / ".ci" / "gate"],
    ids=lambda path: path.name,
)
def test_the_command_line_knows_every_option_that_ci_gives(path: Path) -> None:
    found = 0
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        call = re.search(r"\b(gate|compile)\b(.* --.*)", line)
        if call is None or line.lstrip().startswith("#"):
            continue
        parameters = app.commands[call[1]].params
        known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
        assert set(re.findall(r"(?<= )--[a-z-]+", call[2])) <= known, line
        found += 1
    assert found
