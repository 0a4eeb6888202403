"""The commands that run something that was made: an artifact, a model, a pass that failed."""

from pathlib import Path

import click

from tilewright.tools.arguments import DATA, PATH, THREADS, device_options, one_size
from tilewright.tools.command import command
from tilewright.tools.console import Console


@command("run")
@click.argument("artifact")
@DATA
@click.option("--output", "-o", type=PATH, help="Write the outputs to this .npz file.")
@THREADS
@device_options
def run_command(
    console: Console,
    artifact: str,
    data: Path,
    output: Path | None,
    threads: int | None,
    device: str | None,
) -> None:
    """Run an artifact on every sample of a file."""
    from tilewright.tools.commands import run_artifact

    run_artifact(artifact, data, output, threads, device, console)


@command("verify")
@click.argument("a")
@click.argument("b")
@DATA
@THREADS
@device_options
def verify_command(
    console: Console, a: str, b: str, data: Path, threads: int | None, device: str | None
) -> None:
    """Compare the outputs of two artifacts or .onnx files; exit 1 where they disagree."""
    from tilewright.tools.commands import run_verify

    run_verify(a, b, data, threads, device, console)


@command("bench")
@click.argument("artifact")
@click.option(
    "--against", default="onnxruntime", show_default=True, help="Engines, joined by commas."
)
@click.option("--model", type=PATH, help="Give the others this .onnx file, not the artifact's.")
@click.option(
    "--data", type=PATH, help="Inputs, of which the first is timed; random if not given."
)
@click.option(
    "--dim", multiple=True, metavar="NAME=N", help="Size of an open dimension of random inputs."
)
@THREADS
@click.option("--rounds", default=7, show_default=True, help="Rounds, of 0.3 s an engine.")
def bench_command(
    console: Console,
    artifact: str,
    against: str,
    model: Path | None,
    data: Path | None,
    dim: tuple[str, ...],
    threads: int | None,
    rounds: int,
) -> None:
    """Time an artifact against other engines, a process each, taking turns.

    An engine's ratio is its time over the artifact's: the median of the rounds' ratios.
    """
    from tilewright.tools.commands import run_bench

    engines = [engine.strip() for engine in against.split(",") if engine.strip()]
    sizes = one_size(dim, "bench")
    run_bench(artifact, engines, model, data, sizes, threads, rounds, console)


@command("eval")
@click.argument("model")
@click.option("--task", required=True, help="A task; `tilewright zoo list` shows them.")
@THREADS
@device_options
@click.option("--limit", type=int, help="Only the first so many samples.")
def eval_command(
    console: Console,
    model: str,
    task: str,
    threads: int | None,
    device: str | None,
    limit: int | None,
) -> None:
    """Score MODEL, an artifact, an .onnx file or zoo:NAME, on a labelled task."""
    from tilewright.tools.commands import run_eval

    run_eval(model, task, threads, device, limit, console)


@command("reproduce")
@click.argument("folder", type=PATH)
def reproduce_command(console: Console, folder: Path) -> None:
    """Rerun a failing pass from the folder that it left."""
    from tilewright.tools.commands import run_reproduce

    run_reproduce(folder, console)
