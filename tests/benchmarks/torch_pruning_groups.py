"""Compare what goes with a channel here and in Torch-Pruning's dependency graph.

    pip install torch==2.13.0 onnxscript torch-pruning
    python tests/benchmarks/torch_pruning_groups.py --details

One row for each dimension that the outputs of a convolution or linear layer are made of, such
as heads and their depths. Its first entry is taken out here, and the same outputs in
Torch-Pruning: how many slices of parameters (tensor, axis, entries) go in either, and how many
of them are the same.

They differ in three places. Features of a head: Torch-Pruning ties those of queries and keys to
those of values, which no sum joins; here they are dimensions of their own. Groups of a
convolution: here a whole one goes, with its inputs and its outputs; there a group is left
without either. What callers see: here it stays.
"""

import argparse
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, indices, size_of
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.passes.clean.fold_constants import FoldConstants
from tilewright.protocol import Context
from tilewright.tools.console import Console
from tilewright.tools.find_target import find_target

torch: Any = importlib.import_module("torch")
tp: Any = importlib.import_module("torch_pruning")
nn = torch.nn

Slice = tuple[str, int, tuple[int, ...]]


class Net(nn.Module):  # type: ignore[misc, name-defined]
    """Layers by name, and what is done with them."""

    def __init__(self, run: Callable[[Any, Any], Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = run

    def forward(self, x: Any) -> Any:
        """Return what the layers make of x."""
        return self._run(self, x)


def chain() -> Net:
    """Convolutions in a row, and a classifier that reads each position by itself."""

    def run(n: Any, x: Any) -> Any:
        x = torch.relu(n.norm(n.first(x)))
        return n.classes(torch.flatten(torch.relu(n.second(x)), 1))

    return Net(
        run,
        first=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 6, 3, stride=4),
        classes=nn.Linear(24, 5),
    )


def residual() -> Net:
    """A stream that two blocks add to."""

    def run(n: Any, x: Any) -> Any:
        x = n.stem(x)
        x = x + n.down1(torch.relu(n.up1(x)))
        x = x + n.down2(torch.relu(n.norm(n.up2(x))))
        return n.classes(x.mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(3, 8, 3),
        up1=nn.Conv2d(8, 12, 1),
        down1=nn.Conv2d(12, 8, 1),
        up2=nn.Conv2d(8, 12, 1),
        norm=nn.BatchNorm2d(12),
        down2=nn.Conv2d(12, 8, 1),
        classes=nn.Linear(8, 5),
    )


def gated() -> Net:
    """An inverted bottleneck with a depthwise convolution and squeeze-and-excitation."""

    def run(n: Any, x: Any) -> Any:
        x = torch.relu(n.depthwise(torch.relu(n.expand(x))))
        gate = torch.sigmoid(n.excite(torch.relu(n.squeeze(x.mean((2, 3), keepdim=True)))))
        return n.head(n.project(x * gate))

    return Net(
        run,
        expand=nn.Conv2d(3, 12, 1),
        depthwise=nn.Conv2d(12, 12, 3, groups=12),
        squeeze=nn.Conv2d(12, 4, 1),
        excite=nn.Conv2d(4, 12, 1),
        project=nn.Conv2d(12, 6, 1),
        head=nn.Conv2d(6, 5, 1),
    )


def joined() -> Net:
    """A dense block: each layer reads all that was made before it."""

    def run(n: Any, x: Any) -> Any:
        a = torch.relu(n.first(x))
        b = torch.relu(n.second(a))
        c = torch.relu(n.third(torch.cat([a, b], 1)))
        return n.head(torch.relu(n.norm(torch.cat([a, b, c], 1))))

    return Net(
        run,
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(8, 4, 3, padding=1),
        third=nn.Conv2d(12, 6, 3, padding=1),
        norm=nn.BatchNorm2d(18),
        head=nn.Conv2d(18, 5, 1),
    )


def attention() -> Net:
    """A transformer's block before its normalizations: four heads of three features."""

    def heads(x: Any) -> Any:
        return x.reshape(1, 7, 4, 3).transpose(1, 2)

    def run(n: Any, x: Any) -> Any:
        x = n.embed(x)
        y = n.norm1(x)
        q, k, v = (heads(layer(y)) for layer in (n.q, n.k, n.v))
        mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        x = x + n.out(mixed.transpose(1, 2).reshape(1, 7, 12))
        x = x + n.down(nn.functional.gelu(n.up(n.norm2(x))))
        return n.head(x)

    return Net(
        run,
        embed=nn.Linear(9, 10),
        norm1=nn.LayerNorm(10),
        **{name: nn.Linear(10, 12) for name in ("q", "k", "v")},
        out=nn.Linear(12, 10),
        norm2=nn.LayerNorm(10),
        up=nn.Linear(10, 20),
        down=nn.Linear(20, 10),
        head=nn.Linear(10, 5),
    )


def fused() -> Net:
    """Queries, keys and values in one layer that is cut into three; a gated perceptron."""

    def heads(x: Any) -> Any:
        return x.reshape(1, 7, 4, 3).transpose(1, 2)

    def run(n: Any, x: Any) -> Any:
        q, k, v = (heads(part) for part in n.qkv(x).chunk(3, -1))
        mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
        x = n.out(mixed.transpose(1, 2).reshape(1, 7, 12))
        left, right = n.both(x).chunk(2, -1)
        return n.head(torch.sigmoid(left) * right)

    return Net(
        run,
        qkv=nn.Linear(9, 36),
        out=nn.Linear(12, 10),
        both=nn.Linear(10, 16),
        head=nn.Linear(8, 5),
    )


def grouped() -> Net:
    """A convolution in two groups between two others."""

    def run(n: Any, x: Any) -> Any:
        return n.last(torch.relu(n.middle(torch.relu(n.first(x)))))

    return Net(
        run,
        first=nn.Conv2d(3, 8, 1),
        middle=nn.Conv2d(8, 12, 3, groups=2),
        last=nn.Conv2d(12, 5, 1),
    )


NETS: Mapping[str, tuple[Callable[[], Net], tuple[int, ...]]] = {
    "chain": (chain, (1, 3, 8, 8)),
    "residual": (residual, (1, 3, 8, 8)),
    "gated": (gated, (1, 3, 8, 8)),
    "joined": (joined, (1, 3, 8, 8)),
    "attention": (attention, (1, 7, 9)),
    "fused": (fused, (1, 7, 9)),
    "grouped": (grouped, (1, 3, 8, 8)),
}


class Row(NamedTuple):
    """What goes with the first output of a layer, in both."""

    net: str
    layer: str
    dimension: str
    theirs: frozenset[Slice]
    ours: frozenset[Slice]


def compare(name: str) -> Iterator[Row]:
    """Yield a row for each dimension of each layer's outputs."""
    build, shape = NETS[name]
    net, x = build().eval(), torch.randn(shape)
    for values in (*net.parameters(), *net.buffers()):
        # Values that occur once, so that they tell which parameter a constant is.
        values.data = torch.rand(values.shape) if values.ndim else values.data
    couplings = Couplings(exported(net, x))
    known = dict(places(net, couplings.graph.constants()))
    dependencies = tp.DependencyGraph().build_dependency(net, example_inputs=x)
    for layer, module in net.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        (written,) = (place for place, its in known.items() if its == (f"{layer}.weight", 0))
        own = couplings.dimension(*written)
        for dimension in (d for d in own if d in couplings.places):
            ours = ours_of(couplings, dimension, known)
            (gone,) = (entries for *place, entries in ours if place == [f"{layer}.weight", 0])
            theirs = theirs_of(net, dependencies, module, gone)
            yield Row(name, layer, described(dimension), theirs, ours)
        for reason in dict.fromkeys(d.fixed for d in own if d.fixed):
            theirs = theirs_of(net, dependencies, module, (0,))
            yield Row(name, layer, f"stays: {reason}", theirs, frozenset())


def exported(net: Net, x: Any) -> Graph:
    """Return the graph, its constants folded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        # Optimized, two parts of a tensor are a Split, but normalizations are folded.
        plain = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        torch.onnx.export(net, (x,), path, dynamo=True, optimize=not plain, verbose=False)
        graph = read_onnx(path)
        return FoldConstants()(graph, Context(find_target("cpu"))).graph.infer_shapes()


def places(
    net: Net, constants: Mapping[str, np.ndarray]
) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Yield which parameter's axis a constant's axis is, as their values tell."""
    known = [*net.named_parameters(), *net.named_buffers()]
    for parameter, tensor in known:
        values = tensor.detach().numpy()
        for name, found in constants.items():
            if found.shape == values.shape and np.array_equal(found, values):
                yield from (((name, axis), (parameter, axis)) for axis in range(values.ndim))
            elif found.ndim == 2 and np.array_equal(found.T, values):
                yield from (((name, axis), (parameter, 1 - axis)) for axis in range(2))


def described(dimension: Dimension) -> str:
    """Return a dimension's size, and why it must keep it."""
    counted = f", stays: {dimension.counted}" if dimension.counted else ""
    return f"{dimension.size}{counted}"


def theirs_of(
    net: Net, dependencies: Any, module: Any, outputs: Sequence[int]
) -> frozenset[Slice]:
    """Return what Torch-Pruning takes with some outputs of a module."""
    names = {id(m): name for name, m in net.named_modules()}
    linear = isinstance(module, nn.Linear)
    root = tp.prune_linear_out_channels if linear else tp.prune_conv_out_channels
    found: set[Slice] = set()
    for dep, entries in dependencies.get_pruning_group(module, root, idxs=list(outputs)):
        target = dep.target.module
        if id(target) not in names or not hasattr(target, "weight"):
            continue
        layer, gone = names[id(target)], tuple(sorted(set(map(int, entries))))
        inward = dependencies.is_in_channel_pruning_fn(dep.handler)
        by_channel = getattr(target, "groups", 1) == getattr(target, "out_channels", 0)
        if inward and isinstance(target, nn.Conv2d | nn.Linear) and not by_channel:
            # A grouped convolution stores the inputs of one group.
            stored = {entry % target.weight.shape[1] for entry in gone}
            found.add((f"{layer}.weight", 1, tuple(sorted(stored))))
            continue
        own = [
            key for key, t in (*target.named_parameters(), *target.named_buffers()) if t.ndim
        ]
        found |= {(f"{layer}.{key}", 0, gone) for key in own}
    return frozenset(found)


def ours_of(
    couplings: Couplings,
    dimension: Dimension,
    known: Mapping[tuple[str, int], tuple[str, int]],
) -> frozenset[Slice]:
    """Return what goes with the first entry of a dimension."""
    rest = {dimension: np.arange(1, dimension.size)}
    found: set[Slice] = set()
    tensors = couplings.graph.gs.tensors()
    for name, axis in couplings.places[dimension]:
        if (name, axis) in known:
            extent = couplings.of(tensors[name])[axis]
            gone = np.setdiff1d(np.arange(size_of(extent)), indices(extent, rest))
            found.add((*known[name, axis], tuple(map(int, gone))))
    return frozenset(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with --details what only one of the two takes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--details", action="store_true")
    chosen = parser.parse_args(arguments)
    # torch.onnx's own code and the libraries under it warn about each other.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [row for net in chosen.nets.split(",") for row in compare(net)]
    console = Console(as_json=False)
    console.table(
        ("net", "layer", "dimension", "Torch-Pruning", "here", "same"),
        [
            (
                r.net,
                r.layer,
                r.dimension,
                *map(str, (len(r.theirs), len(r.ours))),
                str(len(r.theirs & r.ours)),
            )
            for r in rows
        ],
    )
    for row in rows if chosen.details else ():
        for which, other, who in (
            (row.theirs, row.ours, "Torch-Pruning"),
            (row.ours, row.theirs, "here"),
        ):
            for tensor, axis, entries in sorted(which - other):
                console.text(
                    f"{row.net} {row.layer}: only {who}: {tensor} axis {axis} {list(entries)}"
                )


if __name__ == "__main__":
    main()
