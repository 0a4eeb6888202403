"""Arguments that several commands take."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tilewright.errors import UnusableInput
from tilewright.tools.console import Console

PATH = click.Path(path_type=Path)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads; every core of this process if not given.",
)
DATA = click.option(
    "--data", type=PATH, required=True, help="Inputs: an .npz file, samples along axis 0."
)
TARGET = click.option(
    "--target", required=True, help="A name from `tilewright targets`, or a .toml file."
)
PRECISION = click.option(
    "--precision",
    help="Arithmetic of the kernels; fp32 if not given, where the target has it.",
)
CALIBRATION = click.option(
    "--calibration", type=PATH, help="Example inputs: an .npz file or a folder of them."
)
SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Seed of all that is random."
)
EVALUATE = click.option(
    "--eval/--no-eval", "evaluate", default=True, help="Score zoo models on their tasks."
)


def parse_dims(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Read NAME=N and NAME=N,N options; names may hold "=" and ":". Raises UnusableInput."""
    dims: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, written = text.rpartition("=")
        sizes = written.split(",")
        if not name or not all(size.isdecimal() for size in sizes):
            raise UnusableInput(
                f"--dim {text}: write NAME=N, such as --dim batch=1, or NAME=N,N for several."
            )
        found = tuple(map(int, sizes))
        if dims.get(name, found) != found:
            before = ",".join(map(str, dims[name]))
            raise UnusableInput(
                f"--dim {name} is given as {before} and as {written}; give one, or several "
                f"as --dim {name}={before},{written}."
            )
        dims[name] = found
    return dims


def one_size(texts: tuple[str, ...], program: str) -> dict[str, int]:
    """Read NAME=N options. Raises UnusableInput where one has several sizes."""
    given = parse_dims(texts)
    for name, several in given.items():
        if len(several) > 1:
            raise UnusableInput(
                f"--dim {name}={','.join(map(str, several))}: {program} runs at one size; call "
                "it once for each."
            )
    return {name: one for name, (one,) in given.items()}


def device_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `device`, out of --device, or of --tracker and --key."""

    @functools.wraps(function)
    def joined(
        console: Console,
        device: str | None,
        tracker: str | None,
        key: str | None,
        **options: Any,
    ) -> None:
        function(console, device=_device(device, tracker, key), **options)

    for option in reversed(_DEVICE_OPTIONS):
        joined = option(joined)
    return joined


_DEVICE_OPTIONS = (
    click.option(
        "--device",
        help="Where artifacts run, such as qemu or rpc://HOST:PORT of a board; what there is "
        "depends on the target. The best that is there if not given.",
    ),
    click.option(
        "--tracker", metavar="HOST:PORT", help="A fleet's tracker instead, with --key."
    ),
    click.option("--key", help="The kind of board that the fleet is asked for."),
)


def _device(device: str | None, tracker: str | None, key: str | None) -> str | None:
    if tracker is None and key is None:
        return device
    if device is not None or tracker is None or key is None:
        raise UnusableInput(
            "--tracker and --key go together, as in --tracker 10.0.0.2:9190 --key pi4, and "
            "without --device."
        )
    return f"tracker://{tracker}/{key}"
