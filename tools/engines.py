"""Engines that can be timed, each opened as a function from feeds to outputs."""

import importlib
from collections.abc import Callable
from pathlib import Path

from tilewright.errors import UnknownName, UnusableInput
from tilewright.protocol import Executable

# Name -> the function that opens a file: (path, threads) -> Executable.
ENGINES: dict[str, str] = {
    "tilewright": "tilewright.tools.load_artifact:load_any",
    "onnxruntime": "tilewright.tools.load_artifact:load_any",
}


def open_engine(name: str, path: Path, threads: int | None) -> Executable:
    """Open a model in an engine. Raises UnknownName, and UnusableInput where it is missing."""
    check_engine(name)
    module, _, attribute = ENGINES[name].partition(":")
    try:
        opener: Callable[[str, int | None], Executable] = getattr(
            importlib.import_module(module), attribute
        )
    except ImportError as error:
        raise UnusableInput(
            f'The engine "{name}" needs the package {error.name}, which is not installed. '
            f"Install it, or leave {name} out."
        ) from error
    return opener(str(path), threads)


def check_engine(name: str) -> None:
    """Raise UnknownName for an engine that does not exist."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
