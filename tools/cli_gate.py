"""The command that says whether artifacts got worse."""

from pathlib import Path

import click

from tilewright.tools.arguments import PATH, THREADS, device_options
from tilewright.tools.command import JSON_OR_FILE, command
from tilewright.tools.console import Console


@command("gate", JSON_OR_FILE)
@click.argument("artifacts", nargs=-1, required=True, type=PATH)
@click.option("--baseline", type=PATH, help="Compare with the figures of this .json file.")
@click.option("--against", type=PATH, help="Compare with this artifact, timed in turns.")
@click.option(
    "--budget", default="5%", show_default=True, help="Slow-down that must be caught."
)
@click.option(
    "--count-budget", default="0%", show_default=True, help="How much counts may grow."
)
@click.option(
    "--accuracy-budget", default="1%", show_default=True, help="How much the score may lose."
)
@click.option("--task", help="Compare scores, too; `tilewright zoo list` shows the tasks.")
@click.option("--update", is_flag=True, help="Write what the artifacts are now as baseline.")
@click.option(
    "--latency/--no-latency", default=True, help="Time what this machine runs, or count alone."
)
@THREADS
@device_options
@click.option("--markdown", type=PATH, help="Write the table as Markdown to this file.")
@click.option("--junit", type=PATH, help="Write JUnit XML to this file.")
@click.option("--history", type=PATH, help="Add the checks to this SQLite file.")
@click.option("--plot", type=PATH, help="Plot that history to this .html or .svg file.")
@click.option("--label", default="", help="What the history calls this, such as a commit.")
def gate_command(
    console: Console,
    artifacts: tuple[Path, ...],
    baseline: Path | None,
    against: Path | None,
    budget: str,
    count_budget: str,
    accuracy_budget: str,
    task: str | None,
    update: bool,
    latency: bool,
    threads: int | None,
    device: str | None,
    markdown: Path | None,
    junit: Path | None,
    history: Path | None,
    plot: Path | None,
    label: str,
) -> None:
    """Fail, with exit code 1, where ARTIFACTS became slower, larger or less accurate.

    Times are ratios: to onnxruntime with --baseline, to another artifact with --against.
    What is slower by --budget fails; what did not change does not. In between noise decides,
    and where it hides the budget the check is undecided, which does not fail.
    """
    from tilewright.tools.gate_job import Gate, parse_share
    from tilewright.tools.run_gate import run_gate, run_update

    gate = Gate(
        artifacts=artifacts,
        baseline=baseline,
        before=against,
        budget=parse_share("--budget", budget),
        count_budget=parse_share("--count-budget", count_budget),
        accuracy_budget=parse_share("--accuracy-budget", accuracy_budget),
        update=update,
        latency=latency,
        task=task,
        threads=threads,
        device=device,
        markdown=markdown,
        junit=junit,
        history=history,
        plot=plot,
        label=label,
    )
    if update:
        run_update(gate, console)
    else:
        run_gate(gate, console)
