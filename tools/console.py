"""What the programs print: results on stdout, progress and errors on stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.tools.replace_file import replacing


class Console:
    """One command's output. With `as_json`, stdout gets one JSON object and nothing else.

    With a `file`, that gets the object, and stdout what is for people.
    """

    def __init__(self, as_json: bool, file: Path | None = None) -> None:
        self._as_json = as_json
        self._file = file
        self._start = time.monotonic()

    def report(self, message: str) -> None:
        """Say what is being done."""
        seconds = time.monotonic() - self._start
        print(f"[{seconds:6.1f} s] {message}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Send to stderr what libraries print to stdout, from Python or from C."""
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)

    def result(self, value: Mapping[str, Any]) -> None:
        """Print or write the one JSON object; without --json, nothing."""
        if self._as_json:
            print(json.dumps(value))
        if self._file is not None:
            with replacing(self._file, "--json") as aside:
                aside.write_text(json.dumps(value) + "\n", encoding="utf-8")

    def text(self, line: str) -> None:
        """Print a line for people."""
        if not self._as_json:
            print(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table for people; columns of figures are aligned to the right."""
        if self._as_json:
            return
        from rich.console import Console as Screen
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, column in enumerate(columns):
            figures = rows and all(_is_figure(row[index]) for row in rows)
            table.add_column(column, justify="right" if figures else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Screen(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("+", "-", "")
