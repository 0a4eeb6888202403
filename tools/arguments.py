"""Arguments that several commands take."""

from pathlib import Path

import click

from tilewright.errors import UnusableInput

PATH = click.Path(path_type=Path)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads; every core of this process if not given.",
)
DEVICE = click.option(
    "--device",
    help="Where artifacts run; what there is depends on the target. The best that is there if "
    "not given.",
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
