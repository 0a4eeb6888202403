"""Timings: how long ways of doing the same thing took on a device, kept in an SQLite file."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tilewright.database import opened
from tilewright.errors import UnusableInput

_SCHEMA = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS timings (
    device TEXT NOT NULL,
    problem TEXT NOT NULL,
    ways TEXT NOT NULL,
    microseconds TEXT NOT NULL,
    PRIMARY KEY (device, problem, ways)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Timings:
    """Times by device, problem and the ways that were tried against each other.

    `device` is all that a time hangs on but the problem: CPU, instructions, threads, the
    version of the kernels. Times of one row were taken in turns and may be compared; those of
    two rows may not, for machines change their speed.

    Every method raises UnusableInput where the file cannot be used.
    """

    path: Path

    def check(self) -> None:
        """Raise UnusableInput where the file is damaged or cannot be written."""
        with self._opened() as database:
            database.execute("CREATE TEMP TABLE probe (x)")
            database.execute("BEGIN IMMEDIATE")

    def find(self, device: str, problem: str, ways: Sequence[str]) -> tuple[float, ...] | None:
        """Return the microseconds of the first of some ways, or None where none is known."""
        with self._opened() as database:
            row = database.execute(
                "SELECT microseconds FROM timings "
                "WHERE device = ? AND problem = ? AND ways = ?",
                (device, problem, json.dumps(list(ways))),
            ).fetchone()
        return None if row is None else tuple(json.loads(row[0]))

    def keep(
        self, device: str, problem: str, ways: Sequence[str], microseconds: Sequence[float]
    ) -> None:
        """Keep how long the first of some ways took; it replaces what was known of them."""
        row = (device, problem, json.dumps(list(ways)), json.dumps(list(microseconds)))
        with self._opened() as database:
            database.execute("INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)", row)

    def _opened(self) -> AbstractContextManager[sqlite3.Connection]:
        return opened(self.path, _TABLE, _SCHEMA, self._unusable)

    def _unusable(self, error: Exception) -> UnusableInput:
        return UnusableInput(
            f'Timings "{self.path}" cannot be used: {error}. Remove the file if it is damaged, '
            "set TILEWRIGHT_CACHE to a folder where you may write, or compile with --tune 0."
        )


@dataclass(frozen=True)
class Tuning:
    """What a backend may spend on measuring, and where it keeps what it learns.

    Of each problem the `ways` that are estimated to be the fastest are tried; none but the
    first is begun that would not be ready when `seconds` are over.
    """

    ways: int
    seconds: float
    threads: int
    timings: Timings
