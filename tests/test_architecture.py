"""The rules of ARCHITECTURE: who imports whom, who prints, and that the README runs."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MIDDLE = ("passes", "targets", "frontends")
# A layer may import itself and what stands below it.
BELOW = {
    "core": {"core"},
    "passes": {"core", "passes"},
    "targets": {"core", "targets"},
    "frontends": {"core", "frontends"},
    "tools": {"core", "passes", "targets", "frontends", "tools"},
}
FILES = sorted(
    path
    for folder in ("tilewright", *MIDDLE, "tools")
    for path in (ROOT / folder).rglob("*.py")
    # rglob would follow the links tilewright/passes and so on in some versions of Python.
    if path == path.resolve()
)


def layer_of_file(path: Path) -> str:
    folder = path.relative_to(ROOT).parts[0]
    return "core" if folder == "tilewright" else folder


def layer_of_module(module: str) -> str | None:
    first, _, rest = module.partition(".")
    if first != "tilewright":
        return None
    second = rest.partition(".")[0]
    return second if second in (*MIDDLE, "tools") else "core"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    if path == ROOT / "tilewright" / "__init__.py":
        return  # The front door hands out names of every layer, when they are asked for.
    layer = layer_of_file(path)
    found = {module: layer_of_module(module) for module in imported(path)}
    upward = {m for m, target in found.items() if target and target not in BELOW[layer]}
    assert not upward, f"{layer} must not import {sorted(upward)}"


def test_only_the_tools_print_and_exit() -> None:
    for path in FILES:
        if layer_of_file(path) == "tools":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in ("print", "sys.exit", "exit"), (
                f"{path}:{getattr(node, 'lineno', 0)}"
            )


def test_importing_tilewright_or_its_command_line_loads_no_heavy_package() -> None:
    import subprocess
    import sys

    program = (
        "import sys, tilewright, tilewright.tools.cli; "
        "heavy = set('tvm onnx onnxruntime torch numpy scipy networkx rich'.split()); "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\n", "")


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    import tilewright

    for name in tilewright.__all__:
        assert getattr(tilewright, name) is not None
    assert set(tilewright._PLACES) == set(tilewright.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match='no attribute "compil"'):
        tilewright.compil  # noqa: B018


# ---- README ----


def readme_blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_every_command_of_the_readme_is_known() -> None:
    import click

    from tilewright.tools.cli import app

    groups = {n: c for n, c in app.commands.items() if isinstance(c, click.Group)}
    inside = {f"{n} {m}": c for n, g in groups.items() for m, c in g.commands.items()}
    known = {**app.commands, **inside}
    found = set()
    for block in readme_blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if not words or Path(words[0]).name not in ("tilewright", "compile"):
                    continue
                rest = (
                    words[1:]
                    if Path(words[0]).name == "tilewright"
                    else ["compile", *words[1:]]
                )
                name = " ".join(rest[:2]) if rest[0] in groups else rest[0]
                assert name in known, command
                found.add(name)
                options = {word.partition("=")[0] for word in rest if word.startswith("-")}
                parameters = known[name].params
                assert options <= {
                    o for p in parameters for o in (*p.opts, *p.secondary_opts)
                }, command
    assert "compile" in found


def test_every_benchmark_of_the_readme_has_the_options_that_it_shows() -> None:
    found = 0
    for block in readme_blocks("bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"] and words[1].startswith("tests/benchmarks/"):
                text = (ROOT / words[1]).read_text(encoding="utf-8")
                options = {word for word in words[2:] if word.startswith("--")}
                assert options <= set(re.findall(r'add_argument\("(--[a-z]+)"', text)), line
                found += 1
    assert found


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "pytest" in readme_blocks("bash")[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import onnx

    from tests.small_models import normal, small_model

    monkeypatch.chdir(tmp_path)
    text = """g (float[batch,64] x) => (float[batch,4] y) {
        a = MatMul(x, u) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = MatMul(s, v)
    }"""
    model = small_model(text, u=normal(64, 64), w=normal(64, 64), v=normal(64, 4))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=normal(32, 64))
    first, second = readme_blocks("python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    scope: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert (tmp_path / "small.onnx").is_file()
    assert len(second.splitlines()) == 4
    exec(compile(second, "README.md", "exec"), scope)
    assert len(scope["run"].pruned) == 1
    assert scope["context"].calibration.samples == 32


def test_the_pass_of_contributing_runs(tmp_path: Path) -> None:
    written, used = readme_blocks("python", "CONTRIBUTING.md")
    scope: dict[str, object] = {"__name__": "contributing"}
    import sys
    import types

    place = "tilewright.passes.prune.clip_weights"
    module = types.ModuleType(place)
    sys.modules[place] = module
    try:
        exec(compile(written, "CONTRIBUTING.md", "exec"), vars(module))
        exec(compile(used, "CONTRIBUTING.md", "exec"), scope)
        for name, test in scope.items():
            if name.startswith("test_") and callable(test):
                test()
    finally:
        del sys.modules[place]
