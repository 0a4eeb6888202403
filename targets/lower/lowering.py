"""Graph -> Program: every region becomes a kernel call, every shape op a window."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tilewright import oracle
from tilewright.graph import Graph, is_constant, static_shape
from tilewright.protocol import Note, Report
from tilewright.target import Target
from tilewright.targets.kernels.elementwise import Chain, Source
from tilewright.targets.kernels.map import MapKernel
from tilewright.targets.kernels.pen import Isa, dtype_of
from tilewright.targets.lower.chains import ChainBuilder, is_elementwise, with_bare_axes
from tilewright.targets.lower.fusion import fuse_windows
from tilewright.targets.lower.program import Island, Program
from tilewright.targets.lower.quantized import (
    IntegerLayer,
    can_wait,
    dequantized,
    integer_layer,
)
from tilewright.targets.lower.refusals import ANY_DTYPE, FUSING, follows, refusal
from tilewright.targets.lower.regions import Region, find_regions, inputs_of
from tilewright.targets.lower.sites import Pick, estimated
from tilewright.targets.lower.views import VIEWS, view
from tilewright.targets.lower.window import Window, collapse
from tilewright.targets.picked import picked_entries


class NotLowered(Exception):
    """A node that no kernel here runs; the reason is for the report."""


Lower = Callable[["Lowering", Region], None]


class Lowering:
    """The state of one lowering: where every tensor is, and the program so far."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        isa: Isa,
        anchors: dict[str, Lower],
        pick: Pick = estimated,
    ) -> None:
        self.graph = graph
        self.target = target
        self.isa = isa
        self.pick = pick
        self.program = Program()
        self._anchors = anchors
        self._windows: dict[str, Window] = {}
        # Dequantized tensors that nobody has read yet: readers may do it on their way.
        self._waiting: dict[str, gs.Node] = {}
        self._in_floats: set[str] = set()
        self._graph_outputs = {t.name for t in graph.outputs}
        self._read_by_subgraphs = _read_by_subgraphs(graph)

    def run(self, report: Report) -> Program:
        """Lower the whole graph."""
        for tensor in self.graph.inputs:
            shape = static_shape(tensor)
            assert shape is not None, f"input {tensor.name} has no static shape"
            window = self.program.tensor(tensor.name, shape, _stored_dtype(tensor))
            self._windows[tensor.name] = self.program.inputs[tensor.name] = window
        self.program.entries = picked_entries(self.graph)
        regions = find_regions(self.graph, self._takes_followers, follows)
        for index, region in enumerate(regions):
            if index % 50 == 0:
                report(f"lowering {index}/{len(regions)} regions")
            self._lower(region)
        for tensor in self.graph.outputs:
            self.program.outputs[tensor.name] = self.window(tensor)
        threads = int(self.target.settings.get("threads", 0)) or oracle.cores()
        fuse_windows(self.program, threads, self.pick)
        return self.program

    def window(self, tensor: gs.Tensor) -> Window:
        """Return where a tensor is; constants are placed when they are first read."""
        if tensor.name in self._waiting:
            self._dequantize(self._waiting.pop(tensor.name))
        if tensor.name not in self._windows:
            assert is_constant(tensor), f"{tensor.name} is read before it is computed"
            self._windows[tensor.name] = self.program.constant(tensor.name, tensor.values)
        return self._windows[tensor.name]

    def waiting(self, tensor: gs.Tensor) -> gs.Node | None:
        """Return the DequantizeLinear that has yet to compute a tensor, if there is one."""
        node = self._waiting.get(tensor.name)
        return None if node is None or is_constant(node.inputs[0]) else node

    def integers(self, node: gs.Node) -> IntegerLayer | None:
        """Return a layer that runs on integers; None where it is none, or has failed to."""
        return None if node.name in self._in_floats else integer_layer(node)

    def define(self, tensor: gs.Tensor, window: Window) -> None:
        """Note where a tensor is from now on."""
        assert window.shape == static_shape(tensor), f"{tensor.name} is not {window.shape}"
        assert dtype_of(window.dtype) == tensor.dtype, f"{tensor.name} is not {window.dtype}"
        self._windows[tensor.name] = window

    def is_read(self, tensor: gs.Tensor) -> bool:
        """Say whether a node, a subgraph or the graph's output needs a tensor."""
        name = tensor.name
        outer = name in self._graph_outputs or name in self._read_by_subgraphs
        return bool(name) and (outer or bool(tensor.outputs))

    def outside_readers(self, region: Region) -> list[gs.Tensor]:
        """Return the tensors of a region that something outside it reads, in order."""
        inside = {id(n) for n in region.nodes}
        return [
            t
            for node in region.nodes
            for t in node.outputs
            if t.name in self._graph_outputs
            or any(id(c) not in inside for c in t.outputs)
            or t.name in self._read_by_subgraphs
        ]

    def chain_of(
        self,
        region: Region,
        result: gs.Tensor,
        order: Sequence[int],
        run: int = 0,
        bias: Window | None = None,
        scale: Window | None = None,
    ) -> tuple[Chain, list[Window], list[Window]]:
        """Build the chain behind a region's anchor.

        `result` is what the kernel computes; `order` and `run` how its outputs lie in memory,
        as `Program.tensor` says; `scale` and `bias` windows of result's shape that it is
        multiplied by, and that are added then. Returns the chain, its operands and the new
        output windows, all in result's shape; the tensors are defined.
        """
        shape = static_shape(result)
        assert shape is not None, f"{result.name} has no static shape"
        builder = ChainBuilder(shape, self.window, self.waiting)
        builder.result_is(result)
        if scale is not None:
            builder.apply("Mul", result, scale)
        if bias is not None:
            builder.apply("Add", result, bias)
        for node in region.nodes[1:]:
            builder.add(node)
        return self._finish(builder, region, shape, order, run)

    def chain_between(self, region: Region, result: gs.Tensor) -> tuple[Chain, list[Window]]:
        """Build the chain from a region's anchor to `result`, which is not stored.

        Returns the chain and its operands, in the shape of what the anchor computes.
        """
        computed = region.anchor.outputs[0]
        shape = static_shape(computed)
        assert shape is not None, f"{computed.name} has no static shape"
        builder = ChainBuilder(shape, self.window, self.waiting)
        builder.result_is(computed)
        for node in region.nodes[1:]:
            builder.add(node)
        return builder.finish([result]), builder.operands

    def map_region(self, region: Region) -> None:
        """Lower a region of elementwise nodes only."""
        shape = static_shape(region.anchor.outputs[0])
        assert shape is not None, f"{region.anchor.name} has no static shape"
        builder = ChainBuilder(shape, self.window, self.waiting)
        for node in region.nodes:
            builder.add(node)
        full = [w for w in builder.operands if 0 not in _real_strides(w)]
        order, run = (full[0].order, full[0].run) if full else (tuple(range(len(shape))), 0)
        chain, operands, outputs = self._finish(builder, region, shape, order, run)
        self.map_call(chain, operands, outputs, [n.name for n in region.nodes])

    def map_call(
        self,
        chain: Chain,
        operands: Sequence[Window],
        outputs: Sequence[Window],
        nodes: Iterable[str],
    ) -> None:
        """Append a call of an elementwise kernel over windows of one shape."""
        axes = outputs[0].order
        windows = [*operands, *outputs]
        shape = [outputs[0].shape[a] for a in axes]
        dims, rows = collapse(shape, [[w.strides[a] for a in axes] for w in windows])
        count = len(operands)
        kernel = MapKernel(
            shape=dims,
            chain=chain,
            operands=tuple(rows[:count]),
            operand_dtypes=tuple(w.dtype for w in operands),
            outputs=tuple(rows[count:]),
            output_dtypes=tuple(w.dtype for w in outputs),
        )
        self.program.call(kernel, windows, nodes)

    def moved(self, window: Window, order: Sequence[int], why: str, run: int = 0) -> Window:
        """Copy a window into a tensor of its own whose axes lie in `order`."""
        target = self.program.tensor(why, window.shape, dtype_of(window.dtype), order, run)
        copy = Chain((), (Source("operand", 0),))
        self.map_call(copy, [window], [target], [why])
        return target

    def compact(self, window: Window, why: str) -> Window:
        """Return the window itself where it has no gaps in logical order, else a copy."""
        plain = tuple(range(len(window.shape)))
        step = 1
        for axis in reversed(plain):
            if window.shape[axis] > 1 and window.strides[axis] != step:
                return self.moved(window, plain, why)
            step *= window.shape[axis]
        return window

    def _finish(
        self,
        builder: ChainBuilder,
        region: Region,
        shape: tuple[int, ...],
        order: Sequence[int],
        run: int,
    ) -> tuple[Chain, list[Window], list[Window]]:
        outputs = self.outside_readers(region) or [region.nodes[-1].outputs[0]]
        chain = builder.finish(outputs)
        stored: dict[Source, Window] = {}
        for tensor, source in zip(outputs, chain.outputs, strict=True):
            if source not in stored:
                dtype = np.dtype(tensor.dtype).name
                stored[source] = self.program.tensor(tensor.name, shape, dtype, order, run)
            own = static_shape(tensor)
            assert own is not None, f"{tensor.name} has no static shape"
            self.define(tensor, with_bare_axes(stored[source], own))
        return Chain(chain.steps, tuple(stored)), builder.operands, list(stored.values())

    def _takes_followers(self, node: gs.Node) -> bool:
        if is_elementwise(node):
            return follows(node)
        return node.op in FUSING and refusal(node, self._anchors) is None

    def _lower(self, region: Region) -> None:
        node = region.anchor
        if self._may_wait(region):
            self._waiting[node.outputs[0].name] = node
            if node.outputs[0].name in self._graph_outputs | self._read_by_subgraphs:
                self.window(node.outputs[0])
            return
        reason = self._attempt(region)
        if reason is not None and self.integers(node) is not None:
            self._in_floats.add(node.name)
            reason = self._attempt(region)
        if reason is None:
            return
        if len(region.nodes) == 1:
            self._island(region.anchor, reason)
            return
        if region.parts:
            for part in region.parts:
                self._lower(part)
            return
        # What follows may be what was refused, and the anchor be fine without it.
        self._lower(Region(region.nodes[:1]))
        rest = region.nodes[1:]
        while rest and not is_elementwise(rest[0]):
            self._lower(Region(rest[:1]))
            rest = rest[1:]
        if rest:
            self._lower(Region(rest))

    def _may_wait(self, region: Region) -> bool:
        """Say whether a region is a DequantizeLinear that is best left to its readers."""
        node = region.anchor
        if len(region.nodes) > 1 or not can_wait(node):
            return False
        return is_constant(node.inputs[0]) or refusal(node, self._anchors) is None

    def _attempt(self, region: Region) -> str | None:
        """Lower a region, or leave everything as it was and say why not."""
        for part in region.parts or (region,):
            reason = refusal(part.anchor, self._anchors)
            if reason is not None:
                return reason
        program = self.program
        windows, waiting = dict(self._windows), dict(self._waiting)
        steps, layers, constants = (
            len(part) for part in (program.steps, program.layers, program.constants)
        )
        try:
            self._lower_known(region)
        except NotLowered as error:
            del program.steps[steps:], program.layers[layers:]
            for buffer in list(program.constants)[constants:]:
                del program.constants[buffer]
            self._windows, self._waiting = windows, waiting
            return str(error)
        return None

    def _lower_known(self, region: Region) -> None:
        node = region.anchor
        if region.parts:
            self._anchors["Attention"](self, region)
            return
        if node.op in VIEWS and len(region.nodes) == 1 and self._try_view(node):
            return
        if is_elementwise(node):
            self.map_region(region)
            return
        lower = self._anchors.get(node.op)
        if lower is None:
            raise NotLowered(f"{node.op} with these attributes or shapes has no kernel")
        if node.op not in ANY_DTYPE and self.integers(node) is None:
            source = self.window(node.inputs[0])
            if dtype_of(source.dtype) != "float32":
                raise NotLowered(
                    f'{node.op} of {dtype_of(source.dtype)} "{node.inputs[0].name}"'
                )
            if source.dtype == "weights":
                # Kernels take activations from the arena.
                self.define(node.inputs[0], self.moved(source, source.order, node.name))
        lower(self, region)

    def _dequantize(self, node: gs.Node) -> None:
        """Compute what a DequantizeLinear stands for."""
        if is_constant(node.inputs[0]):
            window = self.program.constant(node.outputs[0].name, dequantized(node))
            self._windows[node.outputs[0].name] = window
        else:
            self.map_region(Region((node,)))

    def _try_view(self, node: gs.Node) -> bool:
        windows = view(node, self.window(node.inputs[0]))
        if windows is None:
            moved = self.compact(self.window(node.inputs[0]), node.name)
            windows = view(node, moved)
        if windows is None:
            return False
        for tensor, window in zip(node.outputs, windows, strict=True):
            self.define(tensor, window)
        return True

    def _island(self, node: gs.Node, reason: str | None) -> None:
        inputs = {t.name: self.window(t) for t in inputs_of(node)}
        outputs = {}
        for tensor in node.outputs:
            shape = static_shape(tensor)
            if not tensor.name:
                continue
            if shape is None:
                raise NotLowered(
                    f'{node.op} {node.name}: the shape of its output "{tensor.name}" is '
                    "known only at run time, so no memory can be planned for it"
                )
            window = self.program.tensor(tensor.name, shape, _stored_dtype(tensor))
            outputs[tensor.name] = window
            self.define(tensor, window)
        self.program.steps.append(Island(node, tuple(inputs.items()), tuple(outputs.items())))
        self.program.islands.append(Note(node.name, f"runs in onnxruntime: {reason}"))


def _stored_dtype(tensor: gs.Tensor) -> str:
    try:
        dtype = np.dtype(tensor.dtype) if tensor.dtype is not None else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "fiub":
        raise NotLowered(f'"{tensor.name}" is {tensor.dtype}, which no memory here holds')
    return str(dtype.name)


def _real_strides(window: Window) -> list[int]:
    return [s for n, s in zip(window.shape, window.strides, strict=True) if n > 1]


def _read_by_subgraphs(graph: Graph) -> set[str]:
    return {
        name
        for node in graph.nodes
        for value in node.attrs.values()
        if isinstance(value, gs.Graph)
        for name in value._foreign_tensors()
    }
