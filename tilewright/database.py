"""An SQLite file of one table that survives whatever ends the process."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 30.0  # while another process writes


@contextmanager
def opened(
    path: Path, table: str, schema: int, unusable: Callable[[Exception], Exception]
) -> Iterator[sqlite3.Connection]:
    """Give a connection in one transaction, to a file that is made where it is missing.

    `table` is the SQL that creates its table, `schema` the number of that format. Raises what
    `unusable` makes of an error where the file is damaged, cannot be written or has another
    format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=_PATIENCE_S)
    except (OSError, sqlite3.Error) as error:
        raise unusable(error) from error
    try:
        with database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, schema):
                raise sqlite3.DatabaseError(f"it has format {version}, not {schema}")
            if not version:
                database.execute(table)
                database.execute(f"PRAGMA user_version = {schema}")
            yield database
    except sqlite3.Error as error:
        raise unusable(error) from error
    finally:
        database.close()
