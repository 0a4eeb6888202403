"""The command `gate`, once its arguments are parsed."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from tilewright.errors import CheckFailed
from tilewright.gate import Status
from tilewright.measurement import machine
from tilewright.tools.baseline import baseline_text
from tilewright.tools.console import Console
from tilewright.tools.gate_artifacts import Check, gate_artifacts, updated_baseline
from tilewright.tools.gate_history import History
from tilewright.tools.gate_job import Gate
from tilewright.tools.gate_reports import COLUMNS, check_row, failure, junit, markdown, summary
from tilewright.tools.plot_history import check_plot, plot_history
from tilewright.tools.replace_file import replacing


def run_gate(gate: Gate, console: Console) -> None:
    """Judge artifacts and tell it everywhere. Raises CheckFailed where one is worse."""
    if gate.plot is not None:
        check_plot(gate.plot)
    if gate.history is not None:
        History(gate.history).check()
    with console.working(), contextlib.ExitStack() as whole:
        places = {
            place: whole.enter_context(replacing(place, option))
            for option, place in gate.outputs.items()
        }
        checks = gate_artifacts(gate, console.report)
        _write(gate, checks, places)
    console.table(COLUMNS, [check_row(check) for check in checks])
    console.text(summary(checks))
    failed = [check for check in checks if check.verdict.status == Status.FAILED]
    console.result(
        {
            "passed": not failed,
            "checks": [check.as_json() for check in checks],
            "machine": machine(),
        }
    )
    if failed:
        raise CheckFailed(f"gate: worse than before. {'. '.join(map(failure, failed))}.")


def run_update(gate: Gate, console: Console) -> None:
    """Make what the artifacts are now the baseline."""
    assert gate.baseline is not None, "--update was checked to have one"
    with console.working(), replacing(gate.baseline, "--baseline") as aside:
        entries, names = updated_baseline(gate, console.report)
        aside.write_text(baseline_text(entries), encoding="utf-8")
    rows = [
        (name, figure, f"{value:,.5g}" if isinstance(value, float) else f"{value:,}")
        for name in names
        for figure, value in {**entries[name].counts, **entries[name].scores}.items()
    ]
    console.table(("artifact", "figure", "baseline"), rows)
    timed = sum(bool(entries[name].timed) for name in names)
    console.text(f"Written: {gate.baseline} (with times of {timed} of {len(names)} artifacts)")
    console.result({"baseline": str(gate.baseline), "updated": names})


def _write(gate: Gate, checks: list[Check], places: dict[Path, Path]) -> None:
    if gate.markdown is not None:
        places[gate.markdown].write_text(markdown(checks), encoding="utf-8")
    if gate.junit is not None:
        places[gate.junit].write_bytes(junit(checks))
    if gate.history is not None:
        history = History(gate.history)
        history.keep(checks, datetime.now(UTC), gate.label, machine()["cpu"])
        if gate.plot is not None:
            plot_history(history.rows(), places[gate.plot], gate.plot.suffix)
