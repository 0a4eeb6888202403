"""Find a target by name or file, the backend that builds for it, and passes by their names."""

import importlib
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import UnknownName, UnusableInput

if TYPE_CHECKING:
    from tilewright.pipeline import Pipeline
    from tilewright.protocol import Backend
    from tilewright.target import Target


def find_target(name: str) -> "Target":
    """Return a target of `tilewright targets`, or the one that a .toml file describes."""
    from tilewright.target import read_target

    return read_target(target_file(name))


def target_file(name: str) -> Path:
    """Return the .toml file of a target. Raises UnknownName."""
    if name.endswith(".toml"):
        return Path(name)
    files = target_files()
    if name not in files:
        raise UnknownName("target", name, files)
    return files[name]


def target_files() -> dict[str, Path]:
    """Return the .toml file of every target that comes with tilewright, by name."""
    folder = resources.files("tilewright.targets")
    files = [Path(str(f)) for f in folder.iterdir() if f.name.endswith(".toml")]
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def target_table(name: str) -> dict[str, Any]:
    """Return what a target's file says, unchecked: for lists, which should start fast."""
    path = target_file(name)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableInput(f'Target "{path}" cannot be read: {error}.') from error


def find_backend(name: str) -> "Backend":
    """Import and return a backend. Raises UnknownName."""
    from tilewright.targets import BACKENDS

    check_backend(name)
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)()
    return backend


def check_backend(name: str) -> None:
    """Raise UnknownName for a backend that does not exist, without importing those that do."""
    from tilewright.targets import BACKENDS

    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)


def parse_pipeline(text: str) -> "Pipeline":
    """Return the pipeline that a text like "fold-constants,prune-tiles{sparsity=0.6}" names."""
    from tilewright.passes import PASSES
    from tilewright.pipeline import Pipeline

    return Pipeline.parse(text, PASSES)
