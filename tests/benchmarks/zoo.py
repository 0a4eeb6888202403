"""Compile models of the zoo in fresh processes, and print what each took and what it brought.

    python tests/benchmarks/zoo.py --models ppocr-rec,minilm --sparsity 0,0.6 --threads 2
    python tests/benchmarks/zoo.py --models minilm --precision int8 --eval

One row a compile. Seconds and peak memory are of the whole program, with its timing processes;
the limit is three times the dense weights and 1.5 GB. Latencies are ours and onnxruntime's on
the dense model, each in a process of its own, in turns; run this on an idle machine.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

from tilewright.frontends.zoo import MODELS
from tilewright.tools.console import Console

COMPILE = "from tilewright.tools.cli import compile_main; compile_main()"
MB = 1e6
COLUMNS = (
    "model",
    "sparsity",
    "precision",
    "seconds",
    "peak MB",
    "limit MB",
    "dense MB",
    "stored MB",
    "stored/dense",
    "pruned layers",
    "error",
    "ours ms (min, median)",
    "onnxruntime ms",
    "times as fast",
    "accuracy",
)


class Ended(NamedTuple):
    """A compile that is over: its exit code, the JSON it printed, and what it took."""

    code: int
    manifest: dict[str, Any]
    seconds: float
    peak_bytes: int


class Asked(NamedTuple):
    """What one compile is asked for."""

    model: str
    sparsity: str
    precision: str


def compile_aside(asked: Asked, threads: int, evaluate: bool) -> Ended:
    """Compile in a process of its own, into a folder that is removed afterwards."""
    command = [sys.executable, "-c", COMPILE, f"zoo:{asked.model}", "--target", "cpu"]
    command += ["--sparsity", asked.sparsity, "--precision", asked.precision]
    command += ["--threads", str(threads), "--json"]
    command += ["--eval" if evaluate else "--no-eval"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        child = os.posix_spawn(
            sys.executable,
            [*command, "--output", str(Path(folder) / "model.tw")],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, printed.fileno(), 1)],
        )
        _, status, usage = os.wait4(child, 0)
        seconds = time.perf_counter() - start
        printed.seek(0)
        code = os.waitstatus_to_exitcode(status)
        manifest = json.load(printed) if code == 0 else {}
    return Ended(code, manifest, seconds, usage.ru_maxrss * 1024)


def figures(asked: Asked, ended: Ended) -> dict[str, Any]:
    """Return what one compile took and brought; sizes in bytes, times in ms and seconds."""
    found: dict[str, Any] = {**asked._asdict(), "sparsity": float(asked.sparsity)}
    found |= {"seconds": round(ended.seconds, 1), "peak_bytes": ended.peak_bytes}
    if ended.code != 0:
        return {**found, "exit_code": ended.code}
    manifest = ended.manifest
    size, latency = manifest["bytes"], manifest["latency"]
    return {
        **found,
        "limit_bytes": 3 * size["dense"] + 1_500_000_000,
        "bytes": size,
        "stages": manifest["seconds"],
        "verified": manifest["verified"],
        "latency": latency,
        "accuracy": manifest["accuracy"],
    }


def row(found: Mapping[str, Any]) -> list[str]:
    """Return the table's row for the figures of one compile."""
    begin = [found["model"], f"{found['sparsity']:g}", found["precision"]]
    begin += [f"{found['seconds']:.0f}", f"{found['peak_bytes'] / MB:,.0f}"]
    if "exit_code" in found:
        rest = [f"failed: exit code {found['exit_code']}"]
        return [*begin, *rest, *[""] * (len(COLUMNS) - len(begin) - 1)]
    size, latency = found["bytes"], found["latency"]
    scores = [f"{s['task']} {s['dense']:.4g} -> {s['value']:.4g}" for s in found["accuracy"]]
    return [
        *begin,
        f"{found['limit_bytes'] / MB:,.0f}",
        f"{size['dense'] / MB:.1f}",
        f"{size['stored'] / MB:.1f}",
        share(size),
        share(size["pruned_layers"]),
        f"{found['verified']['max_rel_error']:.0e}",
        times(latency),
        times(latency["dense"]),
        f"{latency['ratio']:.2f}",
        ", ".join(scores),
    ]


def share(size: Mapping[str, int]) -> str:
    """Write stored bytes as a share of dense ones."""
    return f"{size['stored'] / size['dense']:.3f}" if size["dense"] else "-"


def times(latency: Mapping[str, Any]) -> str:
    """Write least and median time."""
    return f"{latency['min_ms']:.2f}, {latency['median_ms']:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what the command line asks for; the exit code counts failures and excesses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS), help="names, joined by commas")
    parser.add_argument("--sparsity", default="0,0.6", help="shares, joined by commas")
    parser.add_argument("--precision", default="fp32", help="arithmetics, joined by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eval", action="store_true", help="score models on their tasks too")
    parser.add_argument("--output", type=Path, help="write all figures to this .json file")
    given = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    lists = (given.models, given.sparsity, given.precision)
    for asked in starmap(Asked, product(*(text.split(",") for text in lists))):
        ended = compile_aside(asked, given.threads, given.eval)
        results.append(figures(asked, ended))
        print("  ".join(row(results[-1])), file=sys.stderr, flush=True)
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    Console(as_json=False).table(COLUMNS, [row(found) for found in results])
    bad = [r for r in results if r["peak_bytes"] > r.get("limit_bytes", 0)]
    return min(len(bad), 1)


if __name__ == "__main__":
    sys.exit(main())
