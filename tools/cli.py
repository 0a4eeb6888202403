"""The programs `tilewright` and `compile`: arguments in, exit code out.

Exit 0 done; 1 a check said no; 2 wrong use or unusable input, with one message on stderr.
Commands import what they need when they run: `tilewright --help` must not wait for compilers.
"""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from tilewright.errors import CheckFailed, TilewrightError, UnusableInput
from tilewright.tools.console import Console
from tilewright.version import VERSION

PATH = click.Path(path_type=Path)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads; every core of this process if not given.",
)
DATA = click.option(
    "--data", type=PATH, required=True, help="Inputs: an .npz file, samples along axis 0."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="tilewright")
def app() -> None:
    """Make ONNX networks small and fast on the device they run on."""


@app.group("zoo")
def zoo_app() -> None:
    """Real models, built on this machine out of public packages."""


def command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Register a function as a command with --json and --debug.

    The function gets a Console first. Its errors become one message and an exit code.
    """

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
                _fail(error)

        json_option = click.option("--json", is_flag=True, help="Print one JSON object.")
        debug_option = click.option("--debug", is_flag=True, help="Show an error's traceback.")
        return group.command(name)(json_option(debug_option(guarded)))

    return register


@command(app, "compile")
@click.argument("model")
@click.option(
    "--target", required=True, help="A name from `tilewright targets`, or a .toml file."
)
@click.option(
    "--sparsity",
    type=float,
    help="Share of weights to remove within each pruned layer, in [0, 1). The first, the last "
    "and tiny layers stay dense; the report lists them.",
)
@click.option(
    "--precision", default="fp32", show_default=True, help="Arithmetic of the kernels."
)
@click.option(
    "--calibration", type=PATH, help="Example inputs: an .npz file or a folder of them."
)
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
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Seed of all that is random."
)
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
@click.option(
    "--eval/--no-eval", "evaluate", default=True, help="Score zoo models on their tasks."
)
def compile_command(console: Console, dim: tuple[str, ...], **options: Any) -> None:
    """Compile MODEL, an .onnx file or zoo:NAME, for a target; verify it and measure it."""
    dims = parse_dims(dim)
    from tilewright.tools.commands import run_compile
    from tilewright.tools.job import Job

    run_compile(Job(dims=dims, **options), console)


@command(app, "search")
@click.argument("model")
@click.option(
    "--target", required=True, help="A name from `tilewright targets`, or a .toml file."
)
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
@click.option(
    "--precision", default="fp32", show_default=True, help="Arithmetic of the kernels."
)
@click.option(
    "--calibration", type=PATH, help="Example inputs: an .npz file or a folder of them."
)
@click.option(
    "--dim", multiple=True, metavar="NAME=N", help="Size of an open dimension of the model."
)
@THREADS
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Seed of all that is random."
)
@click.option("--output", "-o", type=PATH, help="Plan to write; MODEL.plan.json if not given.")
@click.option(
    "--eval/--no-eval", "evaluate", default=True, help="Score zoo models on their tasks."
)
def search_command(
    console: Console, latency_budget: str | None, dim: tuple[str, ...], **options: Any
) -> None:
    """Search which layer of MODEL loses how much, and write a plan for `compile --plan`.

    It measures what each layer's pruning does to the answers and to its time on this device.
    What was measured is kept: the same command goes on where it was interrupted. Exit 1 where
    what is asked cannot be had; the plan that comes nearest is written then.
    """
    dims = _one_size(dim, "search")
    from tilewright.tools.search_job import Search, parse_duration

    budget = None if latency_budget is None else parse_duration(latency_budget)
    search = Search(dims=dims, latency_budget_ms=budget, **options)
    from tilewright.tools.commands import run_search

    run_search(search, console)


@command(app, "run")
@click.argument("artifact")
@DATA
@click.option("--output", "-o", type=PATH, help="Write the outputs to this .npz file.")
@THREADS
def run_command(
    console: Console, artifact: str, data: Path, output: Path | None, threads: int | None
) -> None:
    """Run an artifact on every sample of a file."""
    from tilewright.tools.commands import run_artifact

    run_artifact(artifact, data, output, threads, console)


@command(app, "verify")
@click.argument("a")
@click.argument("b")
@DATA
@THREADS
def verify_command(console: Console, a: str, b: str, data: Path, threads: int | None) -> None:
    """Compare the outputs of two artifacts or .onnx files; exit 1 where they disagree."""
    from tilewright.tools.commands import run_verify

    run_verify(a, b, data, threads, console)


@command(app, "bench")
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
    sizes = _one_size(dim, "bench")
    run_bench(artifact, engines, model, data, sizes, threads, rounds, console)


@command(app, "eval")
@click.argument("model")
@click.option("--task", required=True, help="A task; `tilewright zoo list` shows them.")
@THREADS
@click.option("--limit", type=int, help="Only the first so many samples.")
def eval_command(
    console: Console, model: str, task: str, threads: int | None, limit: int | None
) -> None:
    """Score MODEL, an artifact, an .onnx file or zoo:NAME, on a labelled task."""
    from tilewright.tools.commands import run_eval

    run_eval(model, task, threads, limit, console)


@command(app, "passes")
def passes_command(console: Console) -> None:
    """List the passes, their criteria and allocators, with options, defaults and sources."""
    from tilewright.passes import PARTS, PASSES
    from tilewright.tools.list_passes import list_parts, list_passes

    passes = list_passes(PASSES)
    for described in passes:
        console.text(f"{described['name']}\n    {described['about']}")
        for option in described["options"]:
            default = "must be given" if option["default"] is None else option["default"]
            console.text(f"    {option['name']}: {option['type']} [{default}]")
        if described["source"]:
            console.text(f"    source: {described['source']}")
    parts = {option: list_parts(option, place, passes) for option, place in PARTS.items()}
    for option, choices in parts.items():
        for choice in choices:
            needs = f", needs {' and '.join(choice['needs'])}" if choice["needs"] else ""
            console.text(f"{option}={choice['name']}\n    {choice['about']}")
            console.text(f"    of {', '.join(choice['passes'])}{needs}")
            if choice["source"]:
                console.text(f"    source: {choice['source']}")
    console.result({"passes": passes, "parts": parts})


@command(app, "targets")
@click.argument("name", required=False)
def targets_command(console: Console, name: str | None) -> None:
    """List the targets, or show all that is known of one."""
    from tilewright.tools.find_target import target_file, target_files, target_table

    if name is not None:
        described = target_table(name)
        console.text(target_file(name).read_text(encoding="utf-8").rstrip())
        console.result(described)
        return
    tables = [target_table(known) for known in target_files()]
    for table in tables:
        console.text(f"{table['name']}\n    {table['about']}")
    shown = ("name", "backend", "about")
    console.result({"targets": [{key: table[key] for key in shown} for table in tables]})


@command(zoo_app, "list")
def zoo_list_command(console: Console) -> None:
    """List the models, their licences, sources and tasks."""
    from tilewright.tools.commands import run_zoo_list

    run_zoo_list(console)


@command(zoo_app, "get")
@click.argument("name")
def zoo_get_command(console: Console, name: str) -> None:
    """Fetch or build a model into the cache and print its path."""
    from tilewright.tools.commands import run_zoo_get

    run_zoo_get(name, console)


@command(app, "reproduce")
@click.argument("folder", type=PATH)
def reproduce_command(console: Console, folder: Path) -> None:
    """Rerun a failing pass from the folder that it left."""
    from tilewright.tools.commands import run_reproduce

    run_reproduce(folder, console)


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


def _one_size(texts: tuple[str, ...], program: str) -> dict[str, int]:
    """Read NAME=N options. Raises UnusableInput where one has several sizes."""
    given = parse_dims(texts)
    for name, several in given.items():
        if len(several) > 1:
            raise UnusableInput(
                f"--dim {name}={','.join(map(str, several))}: {program} runs at one size; call "
                "it once for each."
            )
    return {name: one for name, (one,) in given.items()}


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
        _fail(KeyboardInterrupt())
    sys.exit(0)


def compile_main() -> NoReturn:
    """Run `compile`, which is `tilewright compile`."""
    main(["compile", *sys.argv[1:]])


def _fail(error: BaseException) -> NoReturn:
    """Say in one message what went wrong, and exit."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, TilewrightError):
        message = str(error)
    elif isinstance(error, KeyboardInterrupt):
        message = "interrupted: nothing was written."
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
    sys.exit(1 if isinstance(error, CheckFailed) else 2)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
