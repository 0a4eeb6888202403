"""Write a file whole or not at all, and know before the work whether it can be written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tilewright.artifact import obstacle
from tilewright.errors import UnusableInput


@contextlib.contextmanager
def replacing(file: Path, option: str = "--output") -> Iterator[Path]:
    """Give a new file beside `file`, which becomes it at the end; any error removes it.

    A link stays one, and what it leads to is replaced. `option` is what named the file.
    Raises UnusableInput, before anything else happens, where the place cannot be written to,
    and where a folder, a device or a pipe is there.
    """
    place = Path(os.path.realpath(file))
    _check_replaceable(file, place, option)
    aside = place.with_name(f".{place.name}.part")
    try:
        aside.touch()
        yield aside
        aside.rename(place)
    except OSError as error:
        raise obstacle(error, file, option) or error from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def check_place(file: Path, option: str) -> None:
    """Raise UnusableInput where a file cannot be written; what stands there stays."""
    with contextlib.suppress(_Enough), replacing(file, option):
        raise _Enough


def _check_replaceable(file: Path, place: Path, option: str) -> None:
    if file.is_dir():
        raise UnusableInput(f'Output "{file}" is a folder. Give the name of a file.')
    if file.exists() and not file.is_file():
        raise UnusableInput(
            f'Output "{file}" is a device or a pipe, and is written as a whole: give {option} '
            "the name of a file."
        )
    if not place.parent.is_dir():
        folder = place.parent if file.is_symlink() else file.parent
        raise UnusableInput(
            f'Output "{file}": the folder "{folder}" does not exist. Create it, or give '
            f"another place with {option}."
        )


class _Enough(Exception):
    """Nothing is to be written."""
