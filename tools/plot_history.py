"""Plot the history of the gate: a panel a check, a line an artifact."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.errors import UnusableInput
from tilewright.gate import Status

_KINDS = (".html", ".svg")
_WIDTH, _HEIGHT = 640, 140  # of a panel, in pixels
_COLOURS = {Status.PASSED: "#2a7", Status.FAILED: "#c22", Status.UNDECIDED: "#999"}


def check_plot(file: Path) -> None:
    """Raise UnusableInput where no plot can be written: another kind, or no package for it."""
    if file.suffix not in _KINDS:
        raise UnusableInput(f"--plot {file}: it may end in {' or '.join(_KINDS)}.")
    for package in ("altair", "vl_convert"):
        if importlib.util.find_spec(package) is None:
            raise UnusableInput(
                f"--plot {file}: the package {package} is not installed. Get it with: pip "
                "install 'tilewright[plots]'"
            )


def plot_history(rows: Sequence[Mapping[str, Any]], file: Path, kind: str) -> None:
    """Write a plot of what History.rows() returns; `kind` is ".html" or ".svg".

    The file needs nothing beside it: no network, no fonts, no scripts.
    """
    import altair

    shown = [
        {
            **row,
            "panel": " ".join(filter(None, (row["name"], row["unit"]))),
            "change": None if row["ratio"] is None else f"{row['ratio'] - 1:+.1%}",
        }
        for row in rows
        if row["now"] is not None
    ]
    points = altair.Chart(altair.InlineData(values=shown)).encode(
        x=altair.X("at:T", title=None),
        y=altair.Y("now:Q", title=None, scale=altair.Scale(zero=False)),
        detail="artifact:N",
    )
    lines = points.mark_line(color="#aaa").encode(strokeDash=altair.StrokeDash("artifact:N"))
    told = ["at", "label", "cpu", "artifact", "before", "now", "change", "status", "reason"]
    marks = points.mark_point(filled=True, size=50, opacity=1).encode(
        color=altair.Color(
            "status:N",
            scale=altair.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
        ),
        tooltip=[altair.Tooltip(f"{name}:N") for name in told],
    )
    panels = [
        altair.layer(lines, marks, width=_WIDTH, height=_HEIGHT, title=panel).transform_filter(
            altair.FieldEqualPredicate(field="panel", equal=panel)
        )
        for panel in dict.fromkeys(row["panel"] for row in shown)
    ]
    chart = altair.vconcat(*panels)
    if kind == ".svg":
        chart.save(str(file), format="svg")
    else:
        chart.save(str(file), format="html", inline=True)
