"""From units to one TOSA graph. Tensors lie as the operators want them, and move rarely."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, static_shape
from tilewright.targets.npu.operands import Refused, Small
from tilewright.targets.npu.tosa import INT8, Scale, Tensor, Writer
from tilewright.targets.npu.units import Unit

# The device does not run operators on more axes than these.
_MOST_AXES = 6


@dataclass(frozen=True)
class Value:
    """A tensor of the TOSA graph, and which axis of the ONNX tensor each of its axes is."""

    tensor: Tensor
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the ONNX tensor."""
        return tuple(self.tensor.shape[self.axes.index(axis)] for axis in range(len(self.axes)))


class Lowering:
    """Writes units, in order, into one graph; knows what has been written."""

    def __init__(self, graph: Graph, rules: Mapping[str, "Rule"], wide_tables: bool) -> None:
        """`rules` lower units of a graph by the operator of their root, "" functions.

        `wide_tables` says whether the device has tables of 16-bit numbers.
        """
        self.graph = graph
        self.wide_tables = wide_tables
        self.writer = Writer()
        self._rules = rules
        self._values: dict[str, Value] = {}
        self._ends: set[str] = set()  # of the graph: what goes in and what comes out

    def feed(self, name: str, shape: tuple[int, ...]) -> Value:
        """Add an input: images lie with channels last, as the device reads them."""
        axes = lying(len(shape))
        value = Value(self.writer.input(name, [shape[axis] for axis in axes]), axes)
        self._values[name] = value
        self._ends.add(name)
        return value

    def lower(self, unit: Unit) -> None:
        """Write one unit. Raises Refused where the device has no operators for it."""
        kind = "" if unit.root is None else str(unit.root.op)
        if kind not in self._rules or (unit.root is not None and unit.root.domain):
            raise Refused(f"there is no rule for {unit.op}")
        self.writer.prefix = unit.name
        value = self._rules[kind](self, unit)
        expected = shape_of(unit.out)
        assert value.shape == expected, f"{unit.name}: {value.shape} is not {expected}"
        self._values[unit.out.tensor.name] = value

    def result(self, name: str) -> Value:
        """Make a tensor an output; images keep lying as they do."""
        value = self._values[name]
        if value.tensor.name in self._ends:
            # An input, or the same numbers by another name.
            x = value.tensor
            value = Value(self.writer.op("Identity", [x], x.shape, INT8), value.axes)
        self._ends.add(value.tensor.name)
        self.writer.output(value.tensor)
        return value

    def value(self, small: Small) -> Value:
        """Return what has been written for an int8 tensor."""
        return self._values[small.tensor.name]

    def arranged(self, value: Value, axes: Sequence[int]) -> Tensor:
        """Return a tensor whose axes are those of the ONNX tensor in this order."""
        return self.writer.transpose(value.tensor, [value.axes.index(axis) for axis in axes])

    def plain(self, value: Value) -> Tensor:
        """Return a tensor that lies as in ONNX."""
        return self.arranged(value, range(len(value.axes)))

    def rounded(
        self, unit: Unit, sums: Tensor, factor: float | np.ndarray, zero: int = 0
    ) -> Tensor:
        """Return int32 (or int8) sums times real factors as the unit's int8, clamped."""
        out = unit.out
        scale = Scale.of(np.asarray(factor, np.float64) / out.scale)
        if not scale.fits:
            raise Refused("its result has a far smaller scale than what it is made of")
        small = self.writer.rescale(sums, scale, INT8, zero, out.zero)
        return self.clamped(unit, small)

    def clamped(self, unit: Unit, x: Tensor) -> Tensor:
        """Return int8 values of the unit's scale within its bounds."""
        out = unit.out
        # Rounding keeps the order: to clamp and to round is to round and to clamp.
        ends = np.array(unit.bounds, np.float32) / np.float32(out.scale)
        low, high = (int(end) for end in np.clip(np.rint(ends) + out.zero, -128, 127))
        if (low, high) == (-128, 127):
            return x
        return self.writer.clamp(x, low, high)

    def like_result(self, unit: Unit, x: Tensor, source: Small) -> Tensor:
        """Return int8 values with another scale as the unit's, clamped."""
        if (source.scale, source.zero) == (unit.out.scale, unit.out.zero):
            return self.clamped(unit, x)
        return self.rounded(unit, x, source.scale, source.zero)


Rule = Callable[[Lowering, Unit], Value]


def lying(rank: int) -> tuple[int, ...]:
    """Return how a tensor of so many axes lies at the border of a graph: channels last."""
    return (0, *range(2, rank), 1) if rank == 4 else tuple(range(rank))


def shape_of(small: Small) -> tuple[int, ...]:
    """Return a tensor's shape. Raises Refused where it is open, empty, or has too many axes."""
    shape = static_shape(small.tensor)
    if shape is None:
        raise Refused(f"the shape of {small.tensor.name} is not known")
    if not math.prod(shape) or not 1 <= len(shape) <= _MOST_AXES:
        raise Refused(f"{small.tensor.name} has the shape {list(shape)}")
    return shape


def root_of(unit: Unit) -> gs.Node:
    """Return the operator of a unit that is no function."""
    assert unit.root is not None, "rules by an operator get units that have one"
    return unit.root


def activation(unit: Unit, index: int = 0) -> Small:
    """Return an operand that must be an int8 tensor. Raises Refused where it is none."""
    operand = unit.operands[index] if index < len(unit.operands) else None
    if not isinstance(operand, Small):
        raise Refused(f"operand {index} of {unit.op} is no int8 tensor")
    return operand


def constant_of(unit: Unit, index: int) -> np.ndarray | None:
    """Return an operand that must be constant, None where it is left out."""
    operand = unit.operands[index] if index < len(unit.operands) else None
    if operand is not None and not isinstance(operand, np.ndarray):
        raise Refused(f"operand {index} of {unit.op} is not constant")
    return operand
