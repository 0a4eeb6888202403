"""Describe passes by reading their source: importing them all would cost a second or two."""

import ast
import importlib.util
from collections.abc import Mapping
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


def describe_pass(name: str, place: str) -> dict[str, Any]:
    """Describe one pass. An option's default of None means that it must be given."""
    module, _, attribute = place.partition(":")
    found = importlib.util.find_spec(module)
    origin = found.origin if found else None
    assert origin is not None, f"{place} of {name} does not exist"
    tree = ast.parse(Path(origin).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute)
    return {
        "name": name,
        "about": (ast.get_docstring(node) or "").partition("\n")[0],
        "options": _options(node),
        "source": _class_text(node, "source"),
    }


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
