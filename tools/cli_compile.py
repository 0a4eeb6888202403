"""The commands that make something of a model: an artifact, or a plan for one."""

from typing import Any

import click

from tilewright.tools.arguments import (
    CALIBRATION,
    EVALUATE,
    PATH,
    PRECISION,
    SEED,
    TARGET,
    THREADS,
    device_options,
    one_size,
    parse_dims,
)
from tilewright.tools.command import command
from tilewright.tools.console import Console


@command("compile")
@click.argument("model")
@TARGET
@click.option(
    "--sparsity",
    type=float,
    help="Share of weights to remove within each pruned layer, in [0, 1). The first, the last "
    "and tiny layers stay dense; the report lists them.",
)
@PRECISION
@CALIBRATION
@click.option("--pipeline", help='Passes, such as "fold-constants,prune-tiles{sparsity=0.6}".')
@click.option("--plan", type=PATH, help="JSON file of levels by layer; overrules the passes.")
@click.option(
    "--dim",
    multiple=True,
    metavar="NAME=N[,N...]",
    help="Size of an open dimension, or several: the first is that of the calibration data, "
    "and inputs run at the smallest that holds them. Every combination is compiled.",
)
@click.option(
    "--mask",
    metavar="INPUT",
    help="Input that says how much of its last dimension counts; what it leaves out at the end "
    "is not computed.",
)
@THREADS
@device_options
@SEED
@click.option(
    "--tune",
    type=click.Choice(["0", "quick", "full"]),
    default="0",
    show_default=True,
    help="Time ways to run each layer on this machine and take the fastest, for about a minute "
    "or a quarter of an hour. What was timed is not timed again. 0 estimates.",
)
@click.option(
    "--output", "-o", type=PATH, help="Folder to write; MODEL.TARGET.tw if not given."
)
@EVALUATE
@click.option(
    "--estimate/--no-estimate",
    default=True,
    help="Estimate cycles for a device that is modelled, which takes minutes for large models.",
)
def compile_command(console: Console, dim: tuple[str, ...], **options: Any) -> None:
    """Compile MODEL, an .onnx file or zoo:NAME, for a target; verify it and measure it."""
    dims = parse_dims(dim)
    from tilewright.tools.commands import run_compile
    from tilewright.tools.job import Job

    run_compile(Job(dims=dims, **options), console)


@command("search")
@click.argument("model")
@TARGET
@click.option(
    "--latency-budget",
    metavar="TIME",
    help="Median latency to stay within, such as 3ms, 0.003s or 3000us: least damage in it.",
)
@click.option(
    "--accuracy-floor",
    type=float,
    help="How well answers must agree with the dense network's, on calibration samples that "
    "nothing was fitted to: 1 is the same, 0 no better than their mean. Fastest at it. With "
    "both options the floor holds and the budget is tried.",
)
@PRECISION
@CALIBRATION
@click.option(
    "--dim", multiple=True, metavar="NAME=N", help="Size of an open dimension of the model."
)
@THREADS
@device_options
@SEED
@click.option("--output", "-o", type=PATH, help="Plan to write; MODEL.plan.json if not given.")
@EVALUATE
def search_command(
    console: Console, latency_budget: str | None, dim: tuple[str, ...], **options: Any
) -> None:
    """Search which layer of MODEL loses how much, and write a plan for `compile --plan`.

    It measures what each layer's pruning does to the answers and to its time on this device.
    What was measured is kept: the same command goes on where it was interrupted. Exit 1 where
    what is asked cannot be had; the plan that comes nearest is written then.
    """
    dims = one_size(dim, "search")
    from tilewright.tools.search_job import Search, parse_duration

    budget = None if latency_budget is None else parse_duration(latency_budget)
    search = Search(dims=dims, latency_budget_ms=budget, **options)
    from tilewright.tools.commands import run_search

    run_search(search, console)
