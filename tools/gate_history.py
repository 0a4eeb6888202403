"""History of the gate: every check that was ever judged, in an SQLite file."""

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tilewright.database import opened
from tilewright.errors import UnusableInput
from tilewright.tools.gate_artifacts import Check

_SCHEMA = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS checks (
    at TEXT NOT NULL,
    label TEXT NOT NULL,
    cpu TEXT NOT NULL,
    artifact TEXT NOT NULL,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    before REAL,
    now REAL,
    ratio REAL,
    low REAL,
    high REAL,
    runs INTEGER NOT NULL,
    budget REAL NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL
)
"""
_COLUMNS = ("artifact", "name", "unit", "before", "now", "ratio", "low", "high", "runs")


@dataclass(frozen=True)
class History:
    """Checks in the order they were made. Methods raise UnusableInput for an unusable file."""

    path: Path

    def check(self) -> None:
        """Raise UnusableInput where the file is damaged or cannot be written."""
        with self._opened() as database:
            database.execute("CREATE TEMP TABLE probe (x)")
            database.execute("BEGIN IMMEDIATE")

    def keep(self, checks: Sequence[Check], at: datetime, label: str, cpu: str) -> None:
        """Add the checks of a gate, made at a time on a CPU; `label` may name a commit."""
        columns = ("at", "label", "cpu", *_COLUMNS, "budget", "status", "reason")
        when = at.astimezone(UTC).isoformat(timespec="seconds")
        rows = [{"at": when, "label": label, "cpu": cpu, **check.as_json()} for check in checks]
        marks = ", ".join(f":{column}" for column in columns)
        with self._opened() as database:
            database.executemany(
                f"INSERT INTO checks ({', '.join(columns)}) VALUES ({marks})", rows
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return all checks as tables of columns."""
        with self._opened() as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute("SELECT * FROM checks ORDER BY at")]

    def _opened(self) -> AbstractContextManager[sqlite3.Connection]:
        return opened(self.path, _TABLE, _SCHEMA, self._unusable)

    def _unusable(self, error: Exception) -> UnusableInput:
        return UnusableInput(
            f'History "{self.path}" cannot be used: {error}. Remove the file if it is damaged, '
            "or give another place with --history."
        )
