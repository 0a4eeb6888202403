"""Write a file whole or not at all, and know before the work whether it can be written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tilewright.artifact import obstacle
from tilewright.errors import UnusableInput


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a new file beside `file`, which becomes it at the end; any error removes it.

    Raises UnusableInput, before anything else happens, where the place cannot be written to.
    """
    if file.is_dir():
        raise UnusableInput(f'Output "{file}" is a folder. Give the name of a file.')
    if not file.parent.is_dir():
        raise UnusableInput(
            f'Output "{file}": the folder "{file.parent}" does not exist. Create it, or give '
            "another place with --output."
        )
    aside = file.with_name(f".{file.name}.part")
    try:
        aside.touch()
        yield aside
        aside.rename(file)
    except OSError as error:
        raise obstacle(error, file) or error from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def check_place(file: Path) -> None:
    """Raise UnusableInput where a file cannot be written; what stands there stays."""
    with contextlib.suppress(_Enough), replacing(file):
        raise _Enough


class _Enough(Exception):
    """Nothing is to be written."""
