"""The rules of ARCHITECTURE: who imports whom, who prints, and that documents hold."""

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


# ---- README and the other documents ----

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(language: str, document: str = "README.md") -> list[str]:
    return [body for found, body in FENCED.findall(text_of(document)) if found == language]


def prose(document: str) -> str:
    """Return the document without its fenced blocks."""
    return FENCED.sub("", text_of(document))


def shown_commands(document: str) -> Iterator[list[str]]:
    """Yield the words of each command in bash blocks and of each that stands within a line."""
    lines = [
        command
        for block in blocks("bash", document)
        for line in block.replace("\\\n", " ").splitlines()
        for command in line.split("&&")
    ]
    within = r"`((?:tilewright|compile|python) [^`\n]+)`"
    for command in (*lines, *re.findall(within, prose(document))):
        if words := shlex.split(command, comments=True):
            yield [Path(words[0]).name, *words[1:]]


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("-")}


def test_every_command_that_documents_show_is_known() -> None:
    import click

    from tilewright.tools.cli import app

    groups = {n: c for n, c in app.commands.items() if isinstance(c, click.Group)}
    inside = {f"{n} {m}": c for n, g in groups.items() for m, c in g.commands.items()}
    known = {**app.commands, **inside}
    found = set()
    for document in DOCUMENTS:
        for words in shown_commands(document):
            if words[0] not in ("tilewright", "compile"):
                continue
            rest = words[1:] if words[0] == "tilewright" else words
            name = " ".join(rest[:2]) if rest[0] in groups else rest[0]
            assert name in known, f"{document}: {shlex.join(words)}"
            found.add(name)
            parameters = known[name].params
            known_options = {o for p in parameters for o in (*p.opts, *p.secondary_opts)}
            assert options_of(rest) <= known_options, f"{document}: {shlex.join(words)}"
    assert "compile" in found


def test_every_benchmark_that_documents_show_has_those_options() -> None:
    found = set()
    for document in DOCUMENTS:
        for words in shown_commands(document):
            if words[0] == "python" and words[1].startswith("tests/benchmarks/"):
                text = (ROOT / words[1]).read_text(encoding="utf-8")
                options = set(re.findall(r'add_argument\("(--[a-z]+)"', text))
                assert options_of(words) <= options, f"{document}: {shlex.join(words)}"
                found.add(document)
    assert {"README.md", "CONTRIBUTING.md", "docs/pruning.md"} <= found


def anchors(document: str) -> set[str]:
    """Return what GitHub calls the headings of a document.

    Small letters, digits, "_" and "-" stay, spaces become "-", all else goes; a heading that
    comes again gets "-1", "-2" and so on.
    """
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?)(?: +#+)?$", prose(document), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found[anchor] = again = found.get(anchor, -1) + 1
        if again:
            found[f"{anchor}-{again}"] = 0
    return set(found)


def links(document: str) -> list[str]:
    """Return where the links of a document lead, but for those to other places of the web."""
    text = re.sub(r"`[^`\n]*`", "", prose(document))
    inline = re.findall(r"\]\(([^()\s]+)[^()]*\)", text)
    named = re.findall(r"^\[[^]]+\]: *(\S+)", text, flags=re.MULTILINE)
    return [to for to in (*inline, *named) if not re.match(r"[a-z][a-z+.-]*:", to)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        place = (ROOT / document).parent / path if path else ROOT / document
        assert place.exists(), link
        assert place.resolve().is_relative_to(ROOT.resolve()), link
        if anchor:
            target = place.resolve().relative_to(ROOT.resolve()).as_posix()
            assert target.endswith(".md"), link
            assert anchor in anchors(target), link


def test_the_readme_leads_to_every_document() -> None:
    assert {link.partition("#")[0] for link in links("README.md")} >= set(DOCUMENTS[1:])


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "pytest" in blocks("bash")[1]
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
    first, second = blocks("python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    scope: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), scope)
    assert (tmp_path / "small.onnx").is_file()
    assert len(second.splitlines()) == 4
    exec(compile(second, "README.md", "exec"), scope)
    assert len(scope["run"].pruned) == 1
    assert scope["context"].calibration.samples == 32


def test_the_pass_of_contributing_runs(tmp_path: Path) -> None:
    written, used = blocks("python", "CONTRIBUTING.md")
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
