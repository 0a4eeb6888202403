"""Sums, products and functions of tensors, number by number."""

import numpy as np

from tilewright.graph import Graph
from tilewright.oracle import outputs_of, session
from tilewright.segments import part_of
from tilewright.targets.npu.lower import Lowering, Value, activation, shape_of
from tilewright.targets.npu.operands import Refused, Small
from tilewright.targets.npu.tosa import INT8, INT32, Scale, Tensor
from tilewright.targets.npu.units import Unit

# Operands of a sum are shifted left so far: what is rounded is no part of a step of the result.
_HEADROOM = 1 << 20
# By as many steps of the result an operand's step may be larger, for that to be true.
_MOST_STEPS = float(1 << 12)
_WORD = 32767  # the largest step of a constant factor


def function(lowering: Lowering, unit: Unit) -> Value:
    """Look a function of single numbers up; its table is what onnxruntime makes of all 256."""
    source = activation(unit)
    x, out = lowering.value(source), shape_of(unit.out)
    writer = lowering.writer
    table = writer.constant(table_of(unit, lowering.graph))
    looked = writer.op("Table", [x.tensor, table], x.tensor.shape, INT8)
    if x.shape == out:
        return Value(looked, x.axes)
    # A single number of many axes gives the result as many.
    spread = writer.reshape(lowering.plain(Value(looked, x.axes)), out)
    return Value(spread, tuple(range(len(out))))


def table_of(unit: Unit, graph: Graph) -> np.ndarray:
    """Return what a unit without root makes of each int8 number, from -128 on."""
    read, result = activation(unit).tensor.name, unit.out.tensor.name
    nodes = [*unit.dequantizers, *unit.nodes, unit.quantizer]
    model = part_of(graph, nodes, {read: (np.dtype(np.int8), (256,))}, [result])
    numbers = np.arange(-128, 128).astype(np.int8)
    return outputs_of(session(model, threads=1), {read: numbers})[result].reshape(-1)


def addition(lowering: Lowering, unit: Unit) -> Value:
    """Add or Sub: both sides in the same fine steps, in int32."""
    factors = [_step(operand) for operand in unit.operands[:2]]
    coarse = 2 * max(factors)
    if coarse > _MOST_STEPS * unit.out.scale:
        raise Refused("what it adds has far larger steps than the sum")
    fine = coarse / _HEADROOM
    sides, axes = _sides(lowering, unit, [fine, fine])
    op = "Add" if unit.op == "Add" else "Sub"
    return Value(lowering.rounded(unit, lowering.writer.binary(op, *sides), fine), axes)


def multiplication(lowering: Lowering, unit: Unit) -> Value:
    """Mul: the exact product of both, in int32."""
    steps = [
        operand.scale if isinstance(operand, Small) else _step(operand) * 255 / _WORD
        for operand in unit.operands[:2]
    ]
    sides, axes = _sides(lowering, unit, steps)
    product = lowering.writer.binary("Mul", *sides)
    return Value(lowering.rounded(unit, product, steps[0] * steps[1]), axes)


def _step(operand: object) -> float:
    """Return an operand's scale; of a constant, that which int8 would have for it."""
    if isinstance(operand, Small):
        return operand.scale
    if not isinstance(operand, np.ndarray) or not np.isfinite(operand).all():
        raise Refused("an operand is neither an int8 tensor nor finite constants")
    return float(np.abs(operand).max(initial=0.0)) / 255 or 1.0


def _sides(
    lowering: Lowering, unit: Unit, steps: list[float]
) -> tuple[list[Tensor], tuple[int, ...]]:
    """Return both operands in int32 of these steps, lying alike, and how they lie."""
    out = shape_of(unit.out)
    axes = _common_axes(lowering, unit, len(out))
    sides = []
    for operand, step in zip(unit.operands[:2], steps, strict=True):
        if isinstance(operand, Small):
            x = _spread(lowering, lowering.value(operand), axes)
            scale = Scale.of(operand.scale / step)
            sides.append(lowering.writer.rescale(x, scale, INT32, operand.zero))
        else:
            assert isinstance(operand, np.ndarray), "checked by _step"
            wide = operand.reshape((1,) * (len(out) - operand.ndim) + operand.shape)
            whole = np.rint(wide.astype(np.float64) / step).astype(np.int32)
            sides.append(lowering.writer.constant(np.ascontiguousarray(whole.transpose(axes))))
    return sides, axes


def _common_axes(lowering: Lowering, unit: Unit, rank: int) -> tuple[int, ...]:
    """Return how the larger of the tensors of full rank lies: that one is not moved."""
    values = [lowering.value(o) for o in unit.operands[:2] if isinstance(o, Small)]
    full = [v for v in values if len(v.axes) == rank]
    if not full:
        return tuple(range(rank))
    return max(full, key=lambda v: int(np.prod(v.shape))).axes


def _spread(lowering: Lowering, x: Value, axes: tuple[int, ...]) -> Tensor:
    """Return a tensor with axes of size 1 in front, as many as there are, lying like `axes`."""
    missing = len(axes) - len(x.axes)
    if not missing:
        return lowering.arranged(x, axes)
    wide = lowering.writer.reshape(lowering.plain(x), (1,) * missing + x.shape)
    return lowering.writer.transpose(wide, axes)
