"""Compile models of the zoo, and time them against other engines on the same models and inputs.

    python tests/benchmarks/peers.py --models minilm --against onnxruntime,openvino --threads 2
    python tests/benchmarks/peers.py --models minilm --sizes seq=16,seq=128,batch=8
    python tests/benchmarks/peers.py --models smollm2-decode --precision fp32,w4 --own

One row a contest: our least and median time, each peer's, and the ratio, peer / ours, of rounds
in one state of the machine. Peers run the original model in float32; with --own the artifact's
model.onnx, pruned and quantized as ours is. Sparse means tiles that our kernels skip: peers run
the dense model. Run this on an idle machine; --output keeps all figures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

from tilewright.frontends import zoo
from tilewright.tools.console import Console
from tilewright.tools.read_model import read_model

TILEWRIGHT = "from tilewright.tools.cli import main; main()"
DEFAULT_SIZE = "default"


class Asked(NamedTuple):
    """One contest."""

    model: str
    size: str
    precision: str
    sparsity: str


def run(*arguments: str) -> dict[str, Any]:
    """Run a command of tilewright in a process of its own; return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", TILEWRIGHT, *arguments, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"tilewright {' '.join(arguments)}: exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def contest(asked: Asked, given: argparse.Namespace) -> dict[str, Any]:
    """Compile a model and bench it, into a folder that is removed afterwards."""
    threads = ["--threads", str(given.threads)]
    name = f"zoo:{asked.model}"
    dims: dict[str, int] = {}
    several: list[str] = []
    if asked.size != DEFAULT_SIZE:
        dimension, _, size = asked.size.partition("=")
        dims = {dimension: int(size)}
        # Calibration data has the usual size, so that one comes first.
        usual = zoo.MODELS[asked.model].dims[dimension]
        sizes = dict.fromkeys([usual, int(size)])
        several = ["--dim", f"{dimension}={','.join(map(str, sizes))}"]
    with tempfile.TemporaryDirectory() as folder:
        artifact = str(Path(folder) / "model.tw")
        command = ["compile", name, "--target", "cpu", "--no-eval", "-o", artifact, *several]
        command += ["--sparsity", asked.sparsity, "--precision", asked.precision]
        manifest = run(*command, "--tune", given.tune, *threads)
        against = ["--against", given.against, "--rounds", str(given.rounds), *threads]
        if not given.own:
            original = Path(folder) / "original.onnx"
            read_model(name, dims).graph.save(original)
            against += ["--model", str(original)]
        if manifest["sizes"] is not None:
            against += ["--dim", asked.size]
        found = run("bench", artifact, *against)
    return {
        **asked._asdict(),
        "own": given.own,
        "seconds": manifest["seconds"],
        "sparsity_overall": manifest["sparsity"]["overall"],
        **found,
    }


def row(found: Mapping[str, Any]) -> list[str]:
    """Return the table's row for one contest."""
    ours, *others = found["rows"]
    begin = [found[key] for key in ("model", "size", "precision", "sparsity")]
    return [
        *begin,
        f"{ours['min_ms']:.2f}, {ours['median_ms']:.2f}",
        *(
            f"{other['min_ms']:.2f}, {other['median_ms']:.2f} "
            f"({found['ratio'][other['engine']]:.2f}x)"
            for other in others
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [name for name in zoo.MODELS if name not in ("ppocr-det", "smollm2")]
    parser.add_argument("--models", default=",".join(names), help="names, joined by commas")
    parser.add_argument("--sizes", default=DEFAULT_SIZE, help="DIM=N, joined by commas")
    parser.add_argument("--precision", default="fp32", help="arithmetics, joined by commas")
    parser.add_argument("--sparsity", default="0,0.6", help="shares, joined by commas")
    parser.add_argument("--against", default="onnxruntime,openvino", help="engines")
    parser.add_argument("--own", action="store_true", help="peers run the artifact's model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tune", default="0", help="0, quick or full")
    parser.add_argument("--output", type=Path, help="write all figures to this .json file")
    given = parser.parse_args(arguments)
    if given.own and given.sizes != DEFAULT_SIZE:
        parser.error("--own: the artifact's model.onnx has the default size only")
    lists = (given.models, given.sizes, given.precision, given.sparsity)
    results = []
    for asked in starmap(Asked, product(*(text.split(",") for text in lists))):
        results.append(contest(asked, given))
        print("  ".join(row(results[-1])), file=sys.stderr, flush=True)
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    columns = ("model", "size", "precision", "sparsity", "ours ms (min, median)")
    engines = [f"{name} ms" for name in given.against.split(",")]
    console = Console(as_json=False)
    console.text(" | ".join(["", *columns, *engines, ""]).strip())
    console.text("|" + "---|" * (len(columns) + len(engines)))
    for found in results:
        console.text(" | ".join(["", *row(found), ""]).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
