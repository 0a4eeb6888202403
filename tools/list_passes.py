"""Describe passes and their parts by reading source: importing all costs a second or two."""

import ast
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
}


def list_passes(registry: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return name, first line of the docstring, options and source of every pass."""
    return [describe_pass(name, registry[name]) for name in sorted(registry)]


def list_parts(
    option: str, place: str, passes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what a table says: {"name": Entry(about="...", source="...", ...), ...}.

    `place` is "module:TABLE". Of each entry the arguments that are texts, or tuples of them.
    Where these are not among them, the passes that know it are those that have `option` and
    all options that the entry reads.
    """
    options = {each["name"]: {its["name"] for its in each["options"]} for each in passes}
    module, _, table = place.partition(":")
    (found,) = (
        node.value
        for node in _parsed(module).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == table
    )
    assert isinstance(found, ast.Dict), f"{place} is no table"
    parts = []
    for key, entry in zip(found.keys, found.values, strict=True):
        assert isinstance(key, ast.Constant), f"{place} has names that are computed"
        assert isinstance(entry, ast.Call), f"{place} has entries that are computed"
        said = {
            str(argument.arg): ast.literal_eval(argument.value)
            for argument in entry.keywords
            if isinstance(argument.value, ast.Constant | ast.Tuple)
        }
        asked = {option, *said.get("reads", ())}
        know = tuple(name for name, given in options.items() if asked <= given)
        parts.append({"name": key.value, "passes": know, **said})
    return parts


def describe_pass(name: str, place: str) -> dict[str, Any]:
    """Describe one pass. An option's default of None means that it must be given."""
    module, _, attribute = place.partition(":")
    tree = _parsed(module)
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute)
    return {
        "name": name,
        "about": (ast.get_docstring(node) or "").partition("\n")[0],
        "options": _options(node),
        "source": _class_text(node, "source"),
    }


def _parsed(module: str) -> ast.Module:
    found = importlib.util.find_spec(module)
    origin = found.origin if found else None
    assert origin is not None, f"{module} does not exist"
    return ast.parse(Path(origin).read_text(encoding="utf-8"))


def _options(node: ast.ClassDef) -> list[dict[str, Any]]:
    options = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kind = ast.unparse(field.annotation)
        if kind.startswith("ClassVar"):
            continue
        default = None if field.value is None else ast.unparse(field.value)
        options.append(
            {"name": field.target.id, "type": _WORDS.get(kind, kind), "default": default}
        )
    return options


def _class_text(node: ast.ClassDef, name: str) -> str:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign | ast.Assign) and statement.value is not None:
            targets = (
                [statement.target]
                if isinstance(statement, ast.AnnAssign)
                else statement.targets
            )
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return str(ast.literal_eval(statement.value))
    return ""
