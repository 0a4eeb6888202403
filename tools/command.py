"""Commands: functions whose errors become one message and an exit code."""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from tilewright.errors import CheckFailed, TilewrightError
from tilewright.tools.console import Console
from tilewright.tools.replace_file import check_place

JSON = click.option("--json", is_flag=True, help="Print one JSON object.")
JSON_OR_FILE = click.option(
    "--json",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Print one JSON object, or write it to a file.",
)


def command(
    name: str, json_option: Callable[[Callable[..., None]], Callable[..., None]] = JSON
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command with --json and --debug. It gets a Console first."""

    def register(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def guarded(json: bool | Path | None, debug: bool, **options: Any) -> None:
            try:
                function(_console(json), **options)
            except click.ClickException:
                raise
            except BaseException as error:
                if debug:
                    traceback.print_exception(error)
                fail(error)

        debug_option = click.option("--debug", is_flag=True, help="Show an error's traceback.")
        return click.command(name)(json_option(debug_option(guarded)))

    return register


def _console(json: bool | Path | None) -> Console:
    if not isinstance(json, Path) or str(json) == "-":
        return Console(as_json=bool(json))
    check_place(json, "--json")
    return Console(as_json=False, file=json)


def fail(error: BaseException) -> NoReturn:
    """Say in one message what went wrong, and exit."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, TilewrightError):
        message = str(error)
    elif isinstance(error, KeyboardInterrupt):
        message = "interrupted: no output was written."
    elif isinstance(error, MemoryError):
        message = "the machine has too little memory for this; nothing was written."
    elif isinstance(error, OSError):
        message = f"{error}. Nothing was written."
    else:
        message = (
            f"a fault in tilewright itself: {type(error).__name__}: {error}. Nothing was "
            "written. Run it again with --debug and report what it shows."
        )
    print(f"tilewright: {message}", file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        sys.exit(128 + next(iter(error.args), signal.SIGINT))  # as shells count it
    sys.exit(1 if isinstance(error, CheckFailed) else 2)
