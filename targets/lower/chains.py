"""Chains from graph nodes: the elementwise tail of a region, with its operands in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.targets.kernels.elementwise import OPERATORS, Chain, Source, Step
from tilewright.targets.lower.quantized import is_per_tensor, zero_point
from tilewright.targets.lower.window import Window

DTYPES = frozenset({"float32", "int64", "int32", "bool", "uint8", "int8"})
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_INTEGER_OPS = frozenset(
    {"Add", "Sub", "Mul", "Min", "Max", "Cast", "Where", "Identity"}
    | {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Not"}
)
_POWERS = (0.5, 1.0, 2.0, 3.0, 4.0)


def is_elementwise(node: gs.Node) -> bool:
    """Say whether a node can be a step of a chain."""
    if node.op not in OPERATORS or node.domain not in (None, "", "ai.onnx"):
        return False
    tensors = [t for t in [*node.inputs, *node.outputs] if t.name]
    if static_shape(node.outputs[0]) is None:
        return False
    if node.op in _QUANTIZERS:
        wide = node.inputs[0] if node.op == "QuantizeLinear" else node.outputs[0]
        return is_per_tensor(node) and wide.dtype == np.float32
    dtypes = {np.dtype(t.dtype).name if t.dtype is not None else "?" for t in tensors}
    if not dtypes <= DTYPES or dtypes & {"uint8", "int8"}:
        return False
    if dtypes != {"float32"} and node.op not in _INTEGER_OPS:
        return False
    if node.op == "Pow":
        return is_constant(node.inputs[1]) and _exponent(node) in _POWERS
    if node.op == "Clip":
        return all(is_constant(t) or not t.name for t in node.inputs[1:])
    return True


@dataclass
class ChainBuilder:
    """Collects steps over results of one logical `shape`.

    `window_of` finds a tensor's window; `waiting` the DequantizeLinear that has yet to compute
    it, which then becomes a step. Operands are broadcast to `shape`.
    """

    shape: tuple[int, ...]
    window_of: Callable[[gs.Tensor], Window]
    waiting: Callable[[gs.Tensor], gs.Node | None]
    steps: list[Step] = field(default_factory=list)
    operands: list[Window] = field(default_factory=list)
    _sources: dict[str, Source] = field(default_factory=dict)

    def result_is(self, tensor: gs.Tensor) -> None:
        """Name the tensor that the kernel itself computes."""
        self._sources[tensor.name] = Source("result")

    def add_operand(self, window: Window) -> Source:
        """Take a window of the chain's shape as an operand; equal windows are one."""
        if window in self.operands:
            return Source("operand", self.operands.index(window))
        self.operands.append(window)
        return Source("operand", len(self.operands) - 1)

    def apply(self, op: str, tensor: gs.Tensor, window: Window) -> None:
        """Add or multiply a window of the chain's shape to a tensor, under the same name."""
        self._sources[tensor.name] = self._step(
            op, (self._sources[tensor.name], self.add_operand(window))
        )

    def add(self, node: gs.Node) -> None:
        """Append a node, or let its output stand for its input where it only reshapes."""
        if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            self._sources[node.outputs[0].name] = self._source(node.inputs[0], node)
            return
        if node.op in _QUANTIZERS:
            self._sources[node.outputs[0].name] = self._quantizer(node, node)
            return
        inputs = [t for t in node.inputs if t.name]
        sources = tuple(self._source(t, node) for t in inputs)
        attrs = dict(node.attrs)
        if node.op == "Pow":
            attrs = {"exponent": _exponent(node)}
        if node.op == "Cast":
            attrs = {"to": _dtype_name(node.attrs["to"])}
        if node.op == "Clip":
            sources = (sources[0], *_limits(node))
        source = self._step(node.op, sources, tuple(sorted(attrs.items())))
        self._sources[node.outputs[0].name] = source

    def finish(self, outputs: Sequence[gs.Tensor]) -> Chain:
        """Return the chain that yields these tensors."""
        return Chain(tuple(self.steps), tuple(self._sources[t.name] for t in outputs))

    def _step(
        self,
        op: str,
        inputs: tuple[Source, ...],
        attrs: tuple[tuple[str, float | int | str], ...] = (),
    ) -> Source:
        self.steps.append(Step(op, inputs, attrs))
        return Source("step", len(self.steps) - 1)

    def _quantizer(self, node: gs.Node, reader: gs.Node) -> Source:
        """Append a QuantizeLinear or DequantizeLinear whose input is as `reader` wants it."""
        (zero,) = zero_point(node)
        attrs = {
            "scale": float(node.inputs[1].values.reshape(-1)[0]),
            "zero": int(zero),
            "dtype": zero.dtype.name,
        }
        source = self._source(node.inputs[0], reader)
        return self._step(node.op, (source,), tuple(sorted(attrs.items())))

    def _source(self, tensor: gs.Tensor, node: gs.Node) -> Source:
        if tensor.name in self._sources:
            return self._sources[tensor.name]
        if is_constant(tensor) and tensor.values.size == 1:
            value = tensor.values.reshape(()).item()
            return Source("number", value=value, dtype=tensor.values.dtype.name)
        waiting = self.waiting(tensor)
        if waiting is not None:
            # Not kept under its name: the next reader may want it in another shape.
            return self._quantizer(waiting, node)
        shape = static_shape(node.outputs[0])
        assert shape is not None, f"{node.name} has no static shape"
        window = self.window_of(tensor)
        if node.op != "Reshape":
            window = window.broadcast(shape)
        return self.add_operand(with_bare_axes(window, self.shape))


def with_bare_axes(window: Window, shape: tuple[int, ...]) -> Window:
    """Show a window in a shape that differs by axes of extent 1 only."""
    real = [(n, s) for n, s in zip(window.shape, window.strides, strict=True) if n > 1]
    assert [n for n, _ in real] == [n for n in shape if n > 1], f"{window} is not {shape}"
    steps = iter(s for _, s in real)
    strides = tuple(next(steps) if n > 1 else 0 for n in shape)
    return Window(window.buffer, shape, strides, window.offset)


def _exponent(node: gs.Node) -> float:
    values = node.inputs[1].values
    return float(values.reshape(-1)[0]) if values.size == 1 else float("nan")


def _limits(node: gs.Node) -> tuple[Source, Source]:
    """Return Clip's limits, from inputs (opset 11) or attributes; float32's where absent."""
    given = [t.values.item() if t.name else None for t in node.inputs[1:3]]
    given += [None] * (2 - len(given))
    least, most = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    low = given[0] if given[0] is not None else node.attrs.get("min", least)
    high = given[1] if given[1] is not None else node.attrs.get("max", most)
    return Source("number", value=float(low)), Source("number", value=float(high))


def _dtype_name(to: object) -> str:
    if isinstance(to, int):
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)).name
    return np.dtype(to).name  # type: ignore[call-overload,no-any-return]
