"""What each part of pruning buys on a zoo model: a table over sparsities.

    python tests/benchmarks/accuracy.py minilm --sparsities 0.3,0.5,0.6,0.7,0.9 --samples 1024

    python tests/benchmarks/accuracy.py minilm --pipeline 'cluster-weights,quantize'

Columns add one part at a time: tiles by magnitude; by OBS, refitted; the rows of a tile from
anywhere; tiles shared out among layers by what the answers suffer; healing (needs torch). The
task's data are seen at the end only. Beside a score is half the width of its 95 % confidence
interval, where it is a share, and the mean cosine to the dense network's outputs on inputs that
nothing was fitted to. With --pipeline there is a row for each of those, and no table.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.frontends import zoo
from tilewright.graph import Graph
from tilewright.protocol import Context
from tilewright.target import Target
from tilewright.tools.console import Console
from tilewright.tools.find_target import find_target, parse_pipeline
from tilewright.tools.read_model import read_model

CLEAN = "fold-constants,fold-batchnorm,remove-identities"
WAYS = {
    "magnitude": "prune-tiles{{sparsity={0},criterion=magnitude,refit=false}}",
    "obs": "prune-tiles{{sparsity={0}}}",
    "any rows": "prune-tiles{{sparsity={0}}}",
    "allocated": "prune-tiles{{sparsity={0},allocate=global}}",
    "healed": "heal{{loss=squares}}",
}
# What this starts from, the dense network else.
STARTS = {"healed": "allocated"}
# These take neighbouring rows into a tile, as a target does that stores vectors of channels.
NEIGHBOURS = ("magnitude", "obs")
UNSEEN = 128  # inputs of another seed than the calibration data's


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=[n for n, m in zoo.MODELS.items() if m.tasks])
    parser.add_argument("--sparsities", default="0.3,0.4,0.5,0.6,0.7,0.8,0.9")
    parser.add_argument("--ways", default=",".join(WAYS), help="of the columns, these")
    parser.add_argument("--precision", default="fp32", help="whose tiles; nothing is quantized")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--pipeline", action="append", default=[], help="may be given again")
    args = parser.parse_args()
    ways = args.ways.split(",")
    for index, way in enumerate(ways):
        if way not in WAYS:
            parser.error(f'"{way}" is none of {", ".join(WAYS)}')
        if way in STARTS and STARTS[way] not in ways[:index]:
            parser.error(f'"{way}" starts from "{STARTS[way]}": name that before it in --ways')
    console = Console(as_json=False)
    source = read_model(f"zoo:{args.model}", report=console.report)
    feeds = zoo.calibration(args.model, args.samples)
    data = Calibration.from_feeds(feeds, source.graph.inputs)
    target = find_target("cpu")
    context = Context(target, data, precision=args.precision, report=console.report)
    dense = parse_pipeline(CLEAN).run(source.graph, context).graph
    print(f"dense: {scored(args.model, dense, dense)}\n")
    for text in args.pipeline:
        done = parse_pipeline(text).run(dense, replace(context, dense=dense)).graph
        print(f"{text}: {scored(args.model, done, dense)}", flush=True)
    if args.pipeline:
        return
    print(f"| sparsity | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for sparsity in args.sparsities.split(","):
        row = []
        made: dict[str, Graph] = {}
        for way in ways:
            on = neighbours(target) if way in NEIGHBOURS else target
            known = replace(context, target=on, dense=dense)
            start = made[STARTS[way]] if way in STARTS else dense
            made[way] = parse_pipeline(WAYS[way].format(sparsity)).run(start, known).graph
            row.append(scored(args.model, made[way], dense))
        print(f"| {sparsity} | {' | '.join(row)} |", flush=True)


def neighbours(target: Target) -> Target:
    """Return the target as if it stored its outputs in vectors."""
    orders = {
        precision: tuple(replace(order, lanes="channels") for order in each)
        for precision, each in target.orders.items()
    }
    return replace(target, orders=orders)


def scored(model: str, graph: Graph, dense: Graph) -> str:
    """Return the task's score, its uncertainty, and how alike the answers are."""
    session = oracle.session(graph)
    score = zoo.evaluate(zoo.MODELS[model].tasks[0], lambda f: oracle.outputs_of(session, f))
    interval = ""
    if 0 <= score.value <= 1:
        half = 1.96 * np.sqrt(score.value * (1 - score.value) / score.n)
        interval = f" ± {half:.3f}"
    judge = oracle.session(dense)
    cosines = [
        cosine(oracle.outputs_of(judge, feeds), oracle.outputs_of(session, feeds))
        for feeds in zoo.calibration(model, UNSEEN, seed=1)
    ]
    return f"{score.value:.3f}{interval} (cos {np.mean(cosines):.3f})"


def cosine(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Return the cosine of all outputs together."""
    a, b = (
        np.concatenate([values.ravel().astype(np.float64) for values in outputs.values()])
        for outputs in (expected, found)
    )
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main()
