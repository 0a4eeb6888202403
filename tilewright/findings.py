"""Findings: what a long search has measured so far, kept in an SQLite file as it goes."""

import json
import sqlite3
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.database import opened
from tilewright.errors import UnusableInput
from tilewright.stale import STALE_S

_SCHEMA = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS findings (
    question TEXT NOT NULL,
    item TEXT NOT NULL,
    found TEXT NOT NULL,
    PRIMARY KEY (question, item)
) WITHOUT ROWID
"""


# When something was last added to a question.
_LAST = "CREATE TABLE IF NOT EXISTS last (question TEXT PRIMARY KEY, seconds REAL NOT NULL)"


@dataclass(frozen=True)
class Findings:
    """Values of JSON by item, for one question.

    `question` names all that the values hang on but the item: another one starts from nothing.
    Each value is kept in a transaction of its own, so a search that is killed loses no more
    than what it was just measuring. Questions to which nothing was added for 30 days are
    forgotten. Raises UnusableInput where the file cannot be used.
    """

    path: Path
    question: str

    def find(self, item: str) -> Any:
        """Return the value of an item, or None where none is known."""
        with self._opened() as database:
            row = database.execute(
                "SELECT found FROM findings WHERE question = ? AND item = ?",
                (self.question, item),
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def any(self) -> bool:
        """Say whether the value of some item is known."""
        with self._opened() as database:
            asked = "SELECT 1 FROM findings WHERE question = ? LIMIT 1"
            return database.execute(asked, (self.question,)).fetchone() is not None

    def keep(self, item: str, value: Any) -> None:
        """Keep the value of an item; it replaces what was known of it."""
        now = time.time()
        with self._opened() as database:
            database.execute(
                "INSERT OR REPLACE INTO findings VALUES (?, ?, ?)",
                (self.question, item, json.dumps(value)),
            )
            database.execute(_LAST)
            database.execute("INSERT OR REPLACE INTO last VALUES (?, ?)", (self.question, now))
            # What was kept before there was this table counts as added to today.
            database.execute(
                "INSERT OR IGNORE INTO last SELECT DISTINCT question, ? FROM findings", (now,)
            )
            database.execute("DELETE FROM last WHERE seconds < ?", (now - STALE_S,))
            database.execute(
                "DELETE FROM findings WHERE question NOT IN (SELECT question FROM last)"
            )

    def _opened(self) -> AbstractContextManager[sqlite3.Connection]:
        return opened(self.path, _TABLE, _SCHEMA, self._unusable)

    def _unusable(self, error: Exception) -> UnusableInput:
        return UnusableInput(
            f'What searches found, "{self.path}", cannot be used: {error}. Remove the file if '
            "it is damaged, or set TILEWRIGHT_CACHE to a folder where you may write."
        )
