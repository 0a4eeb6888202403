"""Segments: run networks layer by layer over all samples, holding only what is alive.

A network with n nodes in order can be cut before any node. What crosses the cut is the
frontier: the tensors that earlier nodes write and later nodes read. A Walk holds the frontier
of every sample and moves its cut forward, one sub-model at a time. Going through all cuts costs
one inference a sample, however many layers are looked at, and what a pass changes behind the
cut is seen, because each sub-model is built from the graph as it is at that time.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.calibration import Calibration
from tilewright.columns import choose_positions, columns
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, is_constant
from tilewright.layers import Layer
from tilewright.oracle import outputs_of, session
from tilewright.threads import spread_over_cores

BUDGET_BYTES = 1 << 29
# Columns gathered for a layer over all samples: enough for a Gram matrix that is well away from
# singular, and bounded however large the feature maps are.
_LEAST_COLUMNS, _MOST_COLUMNS = 16384, 65536
_COLUMNS_PER_INPUT = 8
# Up to the most of them, as long as they hold no more numbers than these.
_NUMBERS = 1 << 26


class Walk:
    """One network on its way through all samples; `cut` counts the nodes behind it."""

    def __init__(self, calibration: Calibration, budget_bytes: int = BUDGET_BYTES) -> None:
        """Stand before the first node. Above the budget the frontier goes to a file."""
        self.cut = 0
        self._budget_bytes = budget_bytes
        self._frontiers: list[dict[str, np.ndarray]] = list(calibration.feeds())
        self._given = set(self._frontiers[0])
        self._stacks: dict[str, _Stack] = {}

    def advance(self, graph: Graph, stop: int) -> None:
        """Run the nodes from the cut up to `stop`, not included, for every sample.

        Nodes of `graph` are in order, and as many at every call; those behind the cut are not
        looked at again.
        """
        if stop <= self.cut:
            return
        segment = graph.nodes[self.cut : stop]
        needed = _reads(graph.nodes[stop:])
        written = {t.name for node in segment for t in node.outputs if t.name}
        wanted = sorted(written & needed)
        self.cut = stop
        if wanted:
            first = self._frontiers[0]
            read = sorted(_reads(segment) & set(first))
            model = part_of(graph, segment, {name: self._kind(name) for name in read}, wanted)
            # One thread a sample and all cores on samples: faster than all cores on each.
            loaded = session(model, threads=1)
        fresh_stacks: dict[str, _Stack] = {}

        def step(index: int) -> None:
            frontier = self._frontiers[index]
            carried = {name: x for name, x in frontier.items() if name in needed}
            if wanted:
                fresh = outputs_of(loaded, {name: frontier[name] for name in read})
                if index == 0:
                    fresh_stacks.update(self._stacks_for(carried, fresh))
                for name, x in fresh.items():
                    stack = fresh_stacks.get(name)
                    carried[name] = x if stack is None else stack.put(index, x)
            self._frontiers[index] = carried
            for stack in (*self._stacks.values(), *fresh_stacks.values()):
                stack.leave_memory()

        step(0)
        spread_over_cores(step, range(1, len(self._frontiers)))
        kept = {n: stack for n, stack in self._stacks.items() if n in needed}
        self._stacks = kept | fresh_stacks

    def knows(self, name: str) -> bool:
        """Say whether a tensor is in the frontier."""
        return name in self._frontiers[0]

    def values(self, name: str) -> Iterator[np.ndarray]:
        """Yield a tensor of the frontier, sample by sample."""
        for frontier in self._frontiers:
            yield frontier[name]
            if name in self._stacks:
                self._stacks[name].leave_memory()

    def _kind(self, name: str) -> tuple[np.dtype, tuple[int, ...] | None]:
        """Return dtype and shape of a tensor, None for a shape that differs among samples."""
        shapes = {x.shape for x in self.values(name)}
        dtype = self._frontiers[0][name].dtype
        return dtype, next(iter(shapes)) if len(shapes) == 1 else None

    def _stacks_for(
        self, carried: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]
    ) -> dict[str, "_Stack"]:
        """Return a stack for each new tensor that the budget has no room for."""
        samples = len(self._frontiers)
        room = self._budget_bytes - samples * sum(
            x.nbytes
            for name, x in carried.items()
            if name not in self._given and name not in self._stacks
        )
        stacks = {}
        for name, x in sorted(fresh.items(), key=lambda item: item[1].nbytes):
            room -= samples * x.nbytes
            if room < 0 and x.nbytes:
                stacks[name] = _Stack(samples, x)
        return stacks


class _Stack:
    """One tensor of every sample, in a file: what is not at work takes no memory.

    Raises UnusableInput where the file has no room.
    """

    def __init__(self, samples: int, like: np.ndarray) -> None:
        size = samples * like.nbytes
        with tempfile.TemporaryFile(prefix="tilewright-") as file:
            try:
                # Writing to a mapped file on a full disk would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise UnusableInput(
                    f'The temporary folder "{tempfile.gettempdir()}" has no room for '
                    f"{size / 1e6:,.0f} MB of activations: {error.strerror}. Set TMPDIR to "
                    "another folder, or give fewer calibration samples."
                ) from error
            self._map = mmap.mmap(file.fileno(), size)
        self._all = np.frombuffer(self._map, like.dtype).reshape(samples, *like.shape)

    def put(self, index: int, x: np.ndarray) -> np.ndarray:
        """Store a sample and return it from here; one of another shape stays where it is."""
        if x.shape != self._all.shape[1:]:
            return x
        self._all[index] = x
        return self._all[index, ...]

    def leave_memory(self) -> None:
        """Give back the pages that were written and read; the file keeps them."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Columns(NamedTuple):
    """A layer's input in the dense and in the compressed network, two (inputs, columns).

    They are the same `chosen` positions of one sample; of large inputs, a seeded choice.
    """

    dense: np.ndarray
    now: np.ndarray
    chosen: np.ndarray


class Pair:
    """The dense and the compressed network, walked side by side."""

    def __init__(
        self,
        calibration: Calibration,
        dense: Graph,
        *,
        seed: int = 0,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        """Start both networks at their inputs; `dense` must have its nodes in order."""
        self._calibration = calibration
        self._dense_graph = dense
        self._seed = seed
        self._dense = Walk(calibration, budget_bytes // 2)
        self._compressed = Walk(calibration, budget_bytes // 2)
        self._index = {node.name: index for index, node in enumerate(dense.nodes)}

    def advance(self, layer: Layer, compressed: Graph) -> None:
        """Go to a layer. Layers must be asked for in order.

        `compressed` is the dense graph with other weights.
        """
        cut = self._index[layer.name]
        self._dense.advance(self._dense_graph, cut)
        self._compressed.advance(compressed, cut)

    def columns(self, layer: Layer, compressed: Graph) -> Iterator[Columns]:
        """Go to a layer, and yield its input in both networks, sample by sample."""
        self.advance(layer, compressed)
        cut = self._index[layer.name]
        least = max(_LEAST_COLUMNS, _COLUMNS_PER_INPUT * layer.inputs)
        total = max(least, min(_MOST_COLUMNS, _NUMBERS // layer.inputs))
        limit = -(-total // self._calibration.samples)
        rng = np.random.default_rng([self._seed, cut])
        samples = zip(
            self._calibration.feeds(),
            self._dense.values(layer.source.name),
            self._compressed.values(layer.source.name),
            strict=True,
        )
        for feeds, dense, now in samples:
            chosen = choose_positions(layer.node, dense, feeds, limit, rng)
            x, x_now = (columns(layer.node, values, chosen) for values in (dense, now))
            yield Columns(x, x_now, chosen)

    def knows(self, name: str) -> bool:
        """Say whether a tensor is computed before the layer gone to, and read behind it."""
        return self._dense.knows(name)

    def drift(self, name: str) -> Iterator[np.ndarray]:
        """Yield by how much a known tensor is more in the dense network, sample by sample."""
        pairs = zip(self._dense.values(name), self._compressed.values(name), strict=True)
        return (dense - now for dense, now in pairs)


def reads(node: gs.Node) -> set[str]:
    """Return the names of the tensors a node reads, with those that its subgraphs read."""
    names = {t.name for t in node.inputs if t.name and not is_constant(t)}
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            inner = {t.name for n in value.nodes for t in n.outputs}
            inner |= {t.name for t in value.inputs}
            outer = {name for n in value.nodes for name in reads(n)}
            outer |= {t.name for t in value.outputs if not is_constant(t)}
            names |= outer - inner
    return names


def _reads(nodes: list[gs.Node]) -> set[str]:
    return {name for node in nodes for name in reads(node)}


def part_of(
    graph: Graph,
    nodes: list[gs.Node],
    inputs: Mapping[str, tuple[np.dtype, tuple[int, ...] | None]],
    outputs: list[str],
) -> onnx.ModelProto:
    """Return some nodes of a graph, in order, as a model.

    `inputs` are dtypes and shapes, None for any, by name.
    """
    part = gs.Graph(
        nodes=nodes,
        opset=graph.opset,
        import_domains=graph.gs.import_domains,
        functions=graph.gs.functions,
        ir_version=graph.gs.ir_version,
    )
    model: onnx.ModelProto = gs.export_onnx(part, do_type_check=False)
    # onnxruntime infers all other types, from inputs whose types are those of real arrays.
    del model.graph.value_info[:]
    for name, (dtype, shape) in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return model
