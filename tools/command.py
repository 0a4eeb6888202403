"""Commands: functions whose errors become one message and an exit code."""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from tilewright.errors import CheckFailed, TilewrightError
from tilewright.tools.console import Console


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command with --json and --debug. It gets a Console first."""

    def register(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def guarded(json: bool, debug: bool, **options: Any) -> None:
            try:
                function(Console(json), **options)
            except click.ClickException:
                raise
            except BaseException as error:
                if debug:
                    traceback.print_exception(error)
                fail(error)

        json_option = click.option("--json", is_flag=True, help="Print one JSON object.")
        debug_option = click.option("--debug", is_flag=True, help="Show an error's traceback.")
        return click.command(name)(json_option(debug_option(guarded)))

    return register


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
