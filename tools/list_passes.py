"""Describe passes and their parts: options, what these may be, what they need, who says so."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.errors import UnusableInput
from tilewright.pipeline import load_pass, pass_options
from tilewright.protocol import Pass

# No option is any of these, where not every value will do.
_NONSENSE: Mapping[type, object] = {str: "?", int: -1, float: -1.0, tuple: ("?",)}


def list_passes(registry: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return name, first line of the docstring, options and source of every pass.

    An option's default of None means that it must be given, `values` of None that whatever
    has its type will do.
    """
    return [_described(load_pass(name, registry)) for name in sorted(registry)]


def list_parts(
    option: str, place: str, passes: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what a table says: {"name": Entry(about="...", source="...", ...), ...}.

    `place` is "module:TABLE". Of each entry, a named tuple, the fields that are texts, or
    tuples of them. Where `passes` is not among them, those know it that have `option` and all
    options that the entry reads.
    """
    options = {each["name"]: {its["name"] for its in each["options"]} for each in passes}
    module, _, table = place.partition(":")
    parts = []
    for key, entry in getattr(importlib.import_module(module), table).items():
        said = {n: v for n, v in entry._asdict().items() if isinstance(v, str | tuple)}
        asked = {option, *said.get("reads", ())}
        know = tuple(name for name, given in options.items() if asked <= given)
        parts.append({"name": key, "passes": know, **said})
    return parts


def _described(cls: type[Pass]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "about": (cls.__doc__ or "").partition("\n")[0],
        "options": [
            {**option._asdict(), "values": _values(cls, option.name)}
            for option in pass_options(cls)
        ],
        "source": cls.source,
    }


def _values(cls: type[Pass], option: str) -> str | None:
    """Return what an option must be: what the pass says itself where it is something else."""
    nonsense = _NONSENSE.get(type(getattr(cls, option, None)))
    if nonsense is None:
        return None
    try:
        cls(**{option: nonsense})
    except UnusableInput as error:
        return str(error).partition(", but must be ")[2].removesuffix(".") or None
    return None
