"""Write trace.json and report.html: what was done to a model, for programs and for people."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from tilewright.tools.verify_artifact import AGREES
from tilewright.trace import Trace

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; }
table { border-collapse: collapse; margin: 0 0 1.5em; }
th, td { padding: .2em .9em .2em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid; } tr:nth-child(even) td { background: #8881; }
code { overflow-wrap: anywhere; }
</style></head><body>
<h1>$title</h1>
<p>Pipeline: <code>$pipeline</code></p>
$sections
</body></html>
""")


def write_report(
    folder: Path, manifest: Mapping[str, Any], trace: Trace, seconds: Mapping[str, float]
) -> None:
    """Write both files into an artifact's folder."""
    record = {
        **trace.as_json(),
        "seconds": {"stages": dict(seconds), "passes": trace.seconds()},
    }
    (folder / "trace.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(_page(manifest, trace), encoding="utf-8")


def summary_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the table that a compile ends with: what, dense, compiled, ratio."""
    size, parameters = manifest["bytes"], manifest["parameters"]
    rows = []
    if latency := manifest.get("latency"):
        dense = latency.get("dense")
        threads = latency.get("threads")
        rows.append(
            (
                "latency, median" + (f" ({_counted(threads, 'thread')})" if threads else ""),
                f"{dense['median_ms']:.2f} ms ({dense['engine']})" if dense else "",
                f"{latency['median_ms']:.2f} ms",
                f"{latency['ratio']:.2f}x as fast" if dense else f"on {latency['device']}",
            )
        )
    if estimate := manifest.get("estimated_cycles"):
        rows.append(
            ("estimated cycles", "", f"{estimate['value']:,.0f}", f"model: {estimate['model']}")
        )
    rows += [
        (
            "weights on disk",
            _megabytes(size["dense"]),
            _megabytes(size["stored"]),
            _share(size["stored"], size["dense"]),
        ),
        (
            "weights that are not zero",
            f"{parameters['dense']:,}",
            f"{parameters['active']:,}",
            _share(parameters["active"], parameters["dense"]),
        ),
    ]
    rows += [
        (
            f"{score['task']}, {score['metric']} (n={score['n']})"
            + ("" if score.get("of") in (None, "the artifact") else f" of {score['of']}"),
            f"{score['dense']:.4g}",
            f"{score['value']:.4g}",
            f"{score['value'] - score['dense']:+.4g}",
        )
        for score in manifest.get("accuracy", ())
    ]
    return rows


def told_verified(verified: Mapping[str, Any]) -> str:
    """Say what an artifact was compared with, for that may not be the model that was given."""
    against = verified["against"]
    named = " and ".join(against)
    if len(against) == 1:
        named += ", the compressed model (not the original),"
    largest = verified["max_rel_error"]
    of_all = ""
    if largest > AGREES.most:  # it rounds to integers, and is judged by all values
        of_all = f"{verified['rms_rel_error']:.1e} of all values by root mean square, "
    return (
        f"The artifact's outputs agree with {named} under onnxruntime: largest error "
        f"{largest:.1e} of the output's largest value, {of_all}"
        f"on {_counted(verified['samples'], 'sample')}."
    )


def told_answers(answers: Mapping[str, Any]) -> str:
    """Say how far the compressed model's answers are from those of the dense one."""
    samples = _counted(answers["samples"], "calibration sample")
    return told_agreement(answers, f"{samples}, which the passes have seen") + (
        " (1 is the same, 0 no better than the dense answers' mean)."
    )


def told_agreement(found: Mapping[str, Any], samples: str) -> str:
    """Say what `Agreement` holds, and of which samples."""
    same = found["same_argmax"]
    return f"Agreement with the dense answers on {samples}: {found['agreement']:.4f}" + (
        "" if same is None else f"; same argmax {same:.1%}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}x" if whole else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _page(manifest: Mapping[str, Any], trace: Trace) -> str:
    answers = manifest["answers"]
    sections = [
        _table("Result", ("", "dense", "compiled", ""), summary_rows(manifest)),
        f"<p>{_text(told_answers(answers))}</p>" if answers else "",
        f"<p>{_text(told_verified(manifest['verified']))}</p>",
        _table("Passes", _PASS_COLUMNS, [(*r[:4], r[5]) for r in trace.rows()]),
        _table("Channels, hidden features and heads removed", _GROUP_COLUMNS, _groups(trace)),
        _table("Build", ("", ""), sorted(manifest["details"].items())),
        _table("Layers", _LAYER_COLUMNS, [_layer_row(layer) for layer in manifest["layers"]]),
        _table(
            "Nodes that run in onnxruntime",
            ("node", "reason"),
            [(n["node"], n["reason"]) for n in manifest["islands"]],
        ),
        _table(
            "Left alone",
            ("pass", "node", "reason"),
            [(n["pass"], n["node"], n["reason"]) for n in manifest["notes"]],
        ),
    ]
    return _PAGE.substitute(
        title=_text(f"{manifest['model']} for {manifest['target']}"),
        pipeline=_text(manifest["pipeline"]),
        sections="\n".join(section for section in sections if section),
    )


_GROUP_COLUMNS = ("written by", "read by", "before", "after")
_PASS_COLUMNS = ("pass", "nodes", "parameters", "zeros", "changed")
_LAYER_COLUMNS = ("layer", "op", "out x in x positions", "tile", "density", "kernel", "reason")


def _groups(trace: Trace) -> list[tuple[str, ...]]:
    return [
        (", ".join(g.writers), ", ".join(g.readers), str(g.before), str(g.after))
        for step in trace.steps
        for g in step.removed.groups
    ]


def _layer_row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        layer["name"],
        layer["op"],
        " x ".join(str(size) for size in layer["shape"]),
        layer["tile"],
        f"{layer['density']:.1%}",
        layer["kernel"],
        layer["reason"],
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "\n".join(f"<tr>{''.join(f'<td>{_text(c)}</td>' for c in row)}</tr>" for row in rows)
    if not body:
        return ""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    return f"<h2>{_text(title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>"


def _text(value: object) -> str:
    return html.escape(str(value))
