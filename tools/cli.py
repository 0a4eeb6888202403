"""The programs `tilewright` and `compile`: arguments in, exit code out.

Exit 0 done; 1 a check said no; 2 wrong use or unusable input, with one message on stderr;
128 + N ended by signal N, so 130 by Ctrl-C.
Commands import what they need when they run: `tilewright --help` must not wait for compilers.
"""

import signal
import sys
from typing import NoReturn

import click

from tilewright.tools import cli_artifact, cli_compile, cli_device, cli_gate, cli_lists
from tilewright.tools.command import fail
from tilewright.version import VERSION


@click.group("zoo", commands=[cli_lists.zoo_list_command, cli_lists.zoo_get_command])
def zoo_app() -> None:
    """Real models, built on this machine out of public packages."""


@click.group("device", commands=[cli_device.device_build_command])
def device_app() -> None:
    """Boards that artifacts are sent to."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    commands=[
        cli_compile.compile_command,
        cli_compile.search_command,
        cli_artifact.run_command,
        cli_artifact.verify_command,
        cli_artifact.bench_command,
        cli_artifact.eval_command,
        cli_gate.gate_command,
        cli_artifact.reproduce_command,
        cli_lists.passes_command,
        cli_lists.targets_command,
        device_app,
        zoo_app,
    ],
)
@click.version_option(VERSION, prog_name="tilewright")
def app() -> None:
    """Make ONNX networks small and fast on the device they run on."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run `tilewright` and exit."""
    # A `kill` or a closed terminal unwinds like Ctrl-C does: nothing half-written stays.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    try:
        app(args=arguments, prog_name="tilewright", standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        fail(KeyboardInterrupt())
    sys.exit(0)


def compile_main() -> NoReturn:
    """Run `compile`, which is `tilewright compile`."""
    main(["compile", *sys.argv[1:]])


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)
