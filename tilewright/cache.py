"""The folder where fetched and built files are kept, and the rules for writing there.

A file or folder is written aside, in the same file system, and renamed when it is whole. So
what carries its final name is complete, and an interrupted run leaves nothing that a later one
trusts.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tilewright.errors import UnusableInput

Report = Callable[[str], None]

_ADVICE = "Set TILEWRIGHT_CACHE to a folder where you may write."


def quiet(message: str) -> None:
    """Drop a progress message."""


def cache_folder() -> Path:
    """Return the folder for fetched packages, built models and evaluation sets.

    TILEWRIGHT_CACHE, else XDG_CACHE_HOME/tilewright, else ~/.cache/tilewright. It may not
    exist yet.
    """
    if chosen := os.environ.get("TILEWRIGHT_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tilewright"


@contextlib.contextmanager
def write_aside(path: Path, advice: str = _ADVICE) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder at; rename it to `path` on success.

    On any exception what was written is removed and `path` stays as it was. Raises
    UnusableInput, with `advice` on what to do, where nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UnusableInput(
            f'The folder "{path.parent}" cannot be created or written to: {error.strerror}. '
            f"{advice}"
        ) from error
    try:
        aside = scratch / path.name
        yield aside
        if path.is_dir():
            # A folder cannot be renamed onto another; this way the name is free for an instant.
            path.replace(scratch / "stale")
        aside.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tree(folder: Path) -> str:
    """Return one sha256 over the relative names and contents of all files below `folder`.

    Links and empty folders do not count: packages are free to rearrange those.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    lines = [f"{sha256_of(p)}  {p.relative_to(folder).as_posix()}\n" for p in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_intact(path: Path, sha256: str) -> bool:
    """Tell whether `path` is a file with this sha256."""
    return path.is_file() and sha256_of(path) == sha256
