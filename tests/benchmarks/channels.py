"""Remove channels of a zoo model here and with Torch-Pruning, at equal rates, and compare.

    pip install torch==2.13.0 torch-pruning
    python tests/benchmarks/channels.py --model efficientnet-lite0 --sparsities 0.1,0.2

One row a rate and a way to choose: multiplications, the task's score and the latency under
onnxruntime of what is left, no training in any of them. Torch-Pruning sees the model as a
module that runs the same nodes; what it chooses is taken out of the ONNX graph. Both see the
same calibration data: GroupTaylor's gradients are those of the cross entropy of the dense
network's own answers.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension
from tilewright.frontends import zoo
from tilewright.graph import Graph, is_constant
from tilewright.layers import Layer, linear_layer, linear_layers
from tilewright.measurement import Samples, pairwise_ratio, sample
from tilewright.passes.prune.bias import bias_of, use_counts
from tilewright.pipeline import Pipeline
from tilewright.protocol import Context
from tilewright.tools.console import Console
from tilewright.tools.find_target import find_target, parse_pipeline
from tilewright.tools.read_model import read_model

torch: Any = importlib.import_module("torch")
tp: Any = importlib.import_module("torch_pruning")
nn = torch.nn

ROUNDS = 5


class Module(nn.Module):  # type: ignore[misc, name-defined]
    """The nodes of a graph, run in order; its linear layers are torch's."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._nodes = graph.nodes
        self._output = graph.outputs[0].name
        self.layers = nn.ModuleList()
        self.places: dict[str, int] = {}
        uses = use_counts(graph)
        self._biased: set[str] = set()
        for node in graph.nodes:
            layer = linear_layer(node)
            if layer is not None:
                self.places[node.name] = len(self.layers)
                bias = bias_of(layer, uses)
                self.layers.append(as_torch(layer, None if bias is None else bias.values))
                if bias is not None and node.op == "MatMul":
                    self._biased.add(node.outputs[0].outputs[0].name)

    def layer(self, name: str) -> Any:
        """Return the torch layer of a node."""
        return self.layers[self.places[name]]

    def forward(self, feeds: Mapping[str, Any]) -> Any:
        """Return the first output."""
        found = dict(feeds)
        for node in self._nodes:
            inputs = [
                torch.tensor(t.values) if is_constant(t) else found[t.name] for t in node.inputs
            ]
            out = node.outputs[0].name
            if node.name in self.places:
                found[out] = self.layer(node.name)(padded(node, inputs[0]))
            elif node.name in self._biased:
                found[out] = next(
                    x for x, t in zip(inputs, node.inputs, strict=True) if not is_constant(t)
                )
            else:
                found[out] = OPERATORS[node.op](node.attrs, *inputs)
        return found[self._output]


def as_torch(layer: Layer, bias: np.ndarray | None) -> Any:
    """Return a layer as torch's."""
    if layer.node.op == "Conv":
        attrs = layer.node.attrs
        made = nn.Conv2d(
            layer.inputs // int(np.prod(layer.weight.shape[2:])) * layer.groups,
            layer.outputs,
            layer.weight.shape[2:],
            stride=attrs.get("strides", 1),
            groups=layer.groups,
            bias=bias is not None,
        )
        made.weight.data = torch.tensor(layer.weight.values)
    else:
        made = nn.Linear(layer.inputs, layer.outputs, bias=bias is not None)
        made.weight.data = torch.tensor(np.ascontiguousarray(layer.matrix()))
    if bias is not None:
        made.bias.data = torch.tensor(bias.reshape(-1))
    return made


def padded(node: gs.Node, x: Any) -> Any:
    """Return a convolution's input with its borders."""
    pads = node.attrs.get("pads", [0])
    if node.op != "Conv" or not any(pads):
        return x
    top, left, bottom, right = pads
    return nn.functional.pad(x, (left, right, top, bottom))


def normalized(attrs: Mapping[str, Any], x: Any, gain: Any, bias: Any) -> Any:
    """Return LayerNormalization of the last axis."""
    return nn.functional.layer_norm(x, x.shape[-1:], gain, bias, attrs["epsilon"])


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "Div": lambda _, x, y: x / y,
    "Max": lambda _, x, y: torch.maximum(x, y),
    "MatMul": lambda _, x, y: x @ y,
    "Erf": lambda _, x: torch.erf(x),
    "Clip": lambda _, x, low, high: torch.clamp(x, low.item(), high.item()),
    "Cast": lambda _, x: x.float(),
    "Gather": lambda _, table, at: table[at],
    "Softmax": lambda _, x: torch.softmax(x, -1),
    "Reshape": lambda _, x, shape: x.reshape(
        [n or x.shape[axis] for axis, n in enumerate(shape.tolist())]
    ),
    "Transpose": lambda attrs, x: x.permute(*attrs["perm"]),
    "Flatten": lambda _, x: x.flatten(1),
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "LayerNormalization": normalized,
    "Unsqueeze": lambda _, x, axes: x[:, None, None] if axes.numel() > 1 else x[..., None],
    "ReduceSum": lambda attrs, x, axes: x.sum(axes.tolist(), keepdim=bool(attrs["keepdims"])),
    "ReduceL2": lambda attrs, x: x.norm(dim=attrs["axes"], keepdim=bool(attrs["keepdims"])),
}


def by_torch_pruning(
    graph: Graph, calibration: Calibration, importance: Any, sparsity: float
) -> Graph:
    """Return the graph without what Torch-Pruning takes, out of what we could take."""
    module = Module(graph)
    feeds = [{k: torch.tensor(v) for k, v in feed.items()} for feed in calibration.feeds()]
    if isinstance(importance, tp.importance.GroupTaylorImportance):
        for one in feeds:
            answer = module(one)
            nn.functional.cross_entropy(answer, answer.argmax(-1)).backward()
    couplings = Couplings(graph)
    written = {layer.name: removable(couplings, layer) for layer in linear_layers(graph)}
    heads = {
        module.layer(name): dimensions[0].size
        for name, dimensions in written.items()
        if len(dimensions) > 1
    }
    pruner = tp.pruner.BasePruner(
        module,
        feeds[0],
        importance,
        pruning_ratio=sparsity,
        ignored_layers=[module.layer(name) for name, its in written.items() if not its],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=sparsity,
        forward_fn=lambda m, x: m(x),
    )
    names = {id(module.layer(name)): name for name in module.places}
    gone: dict[Dimension, set[int]] = {}
    for group in pruner.step(interactive=True):
        name, entries = next(
            (names[id(dep.target.module)], entries)
            for dep, entries in group
            if pruner.DG.is_out_channel_pruning_fn(dep.handler)
            and written.get(names.get(id(dep.target.module), ""))
        )
        leading, *rest = written[name]
        inner = int(np.prod([d.size for d in rest], dtype=np.int64))
        gone.setdefault(leading, set()).update(int(i) // inner for i in entries)
        group.prune()
    return couplings.select({d: sorted({*range(d.size)} - its) for d, its in gone.items()})


def removable(couplings: Couplings, layer: Layer) -> list[Dimension]:
    """Return the dimensions of a layer's outputs, if their entries may go."""
    own = couplings.dimension(layer.weight.name, layer.output_axis)
    usable = all(d in couplings.places and not d.counted for d in own)
    return own if usable else []


def ways(graph: Graph, context: Context, sparsity: float) -> Iterator[tuple[str, Graph]]:
    """Yield the graph that each way to choose leaves."""
    assert context.calibration is not None, "models of the zoo have calibration data"
    for criterion in ("obs", "magnitude"):
        refit = str(criterion == "obs").lower()
        step = (
            f"prune-channels{{sparsity={sparsity},criterion={criterion},refit={refit},"
            "ends=true,smallest=1}"
        )
        pipeline: Pipeline = parse_pipeline(step)
        yield f"prune-channels, {criterion}", pipeline.run(graph, context).graph
    criteria = {
        "GroupMagnitude": tp.importance.GroupMagnitudeImportance(p=2),
        "GroupTaylor": tp.importance.GroupTaylorImportance(),
    }
    for name, importance in criteria.items():
        taken = by_torch_pruning(graph, context.calibration, importance, sparsity)
        yield f"Torch-Pruning, {name}", taken


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--sparsities", default="0.1,0.25")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    console = Console(as_json=False)
    source = read_model(f"zoo:{given.model}", report=console.report)
    feeds = zoo.calibration(given.model, given.samples)
    calibration = Calibration.from_feeds(feeds, source.graph.inputs)
    context = Context(find_target("cpu"), calibration, report=console.report)
    cleaned = parse_pipeline("fold-constants,fold-batchnorm,remove-identities")
    graph = cleaned.run(source.graph, context).graph.edit().sorted()
    (task,) = zoo.MODELS[given.model].tasks
    rates = [float(text) for text in given.sparsities.split(",")]
    every = (
        (f"{way}, {rate:.0%}", left)
        for rate in rates
        for way, left in ways(graph, context, rate)
    )
    sessions, rows = {}, []
    for way, left in chain([("dense", graph)], every):
        loaded = oracle.session(left, given.threads)
        sessions[way] = loaded
        score = zoo.evaluate(task, partial(oracle.outputs_of, loaded))
        macs = sum(layer.positions * layer.weight.values.size for layer in linear_layers(left))
        rows.append((way, f"{macs / 1e6:.1f}", f"{score.value:.4f}"))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    rounds: dict[str, list[Samples]] = {way: [] for way in sessions}
    for _ in range(ROUNDS):
        for way, loaded in sessions.items():
            rounds[way].append(sample(partial(oracle.outputs_of, loaded, feeds[0]), 10))
    timed = [
        (
            *row,
            f"{np.median([s.median_ms for s in rounds[row[0]]]):.2f}",
            f"{pairwise_ratio(rounds['dense'], rounds[row[0]]):.2f}",
        )
        for row in rows
    ]
    console.table(("", "million MACs", task, "ms", "times as fast"), timed)


if __name__ == "__main__":
    main()
