"""What moves numbers about: views, parts, rows of tensors, enlarged images."""

from fractions import Fraction

import numpy as np
import tosa_serializer as ts

from tilewright.targets.npu.lower import (
    Lowering,
    Value,
    activation,
    constant_of,
    root_of,
    shape_of,
)
from tilewright.targets.npu.tosa import INT8, INT32, Scale
from tilewright.targets.npu.units import Refused, Small, Unit

_IMAGE = (0, 2, 3, 1)


def reshaping(lowering: Lowering, unit: Unit) -> Value:
    """Reshape, Flatten, Squeeze, Unsqueeze: numbers stay in ONNX's order."""
    source, shape = activation(unit), shape_of(unit.out)
    flat = lowering.writer.reshape(lowering.plain(lowering.value(source)), shape)
    return _same(lowering, unit, Value(flat, tuple(range(len(shape)))), source)


def transposition(lowering: Lowering, unit: Unit) -> Value:
    """Transpose: nothing moves until an operator wants it to lie so."""
    source = activation(unit)
    x = lowering.value(source)
    order = list(root_of(unit).attrs.get("perm") or range(len(x.axes))[::-1])
    axes = tuple(order.index(axis) for axis in x.axes)
    return _same(lowering, unit, Value(x.tensor, axes), source)


def concatenation(lowering: Lowering, unit: Unit) -> Value:
    """Concat: parts lie as the first one does, in the scale of the whole."""
    shape = shape_of(unit.out)
    axis = int(root_of(unit).attrs["axis"]) % len(shape)
    sources = [activation(unit, index) for index in range(len(unit.operands))]
    axes = lowering.value(sources[0]).axes
    parts = [
        lowering.like_result(unit, lowering.arranged(lowering.value(s), axes), s)
        for s in sources
    ]
    stored = [shape[a] for a in axes]
    return Value(lowering.writer.op("Concat", parts, stored, INT8, axes.index(axis)), axes)


def cut(lowering: Lowering, unit: Unit) -> Value:
    """Slice in steps of 1."""
    source = activation(unit)
    x, shape = lowering.value(source), shape_of(source)
    starts, ends, axes, steps = (constant_of(unit, index) for index in range(1, 5))
    if starts is None or ends is None or (steps is not None and (steps != 1).any()):
        raise Refused("it takes more than a range")
    along = np.arange(len(starts)) if axes is None else axes
    first = [0] * len(shape)
    for axis, start in zip(along.tolist(), starts.tolist(), strict=True):
        size = shape[axis]
        first[axis % len(shape)] = min(max(start + size if start < 0 else start, 0), size)
    return _part(lowering, unit, x, source, first)


def split(lowering: Lowering, unit: Unit) -> Value:
    """One part of a Split."""
    source = activation(unit)
    axis = int(root_of(unit).attrs.get("axis", 0))
    first = [0] * len(shape_of(source))
    read = {t.name for node in (*unit.nodes, unit.quantizer) for t in node.inputs}
    for tensor in root_of(unit).outputs:
        if tensor.name in read:
            return _part(lowering, unit, lowering.value(source), source, first)
        if tensor.shape is None or not isinstance(tensor.shape[axis], int):
            break
        first[axis] += tensor.shape[axis]
    raise Refused("the sizes of its parts are not known")


def padding(lowering: Lowering, unit: Unit) -> Value:
    """Pad by a constant."""
    source = activation(unit)
    x, rank = lowering.value(source), len(shape_of(source))
    amounts, value, axes = (constant_of(unit, index) for index in (1, 2, 3))
    if (
        amounts is None
        or axes is not None
        or str(root_of(unit).attrs.get("mode", "constant")) != "constant"
    ):
        raise Refused("it does not pad all axes by a constant")
    if (amounts < 0).any():
        raise Refused("it cuts off")
    number = 0.0 if value is None else float(value.item())
    small = int(np.clip(round(number / source.scale) + source.zero, -128, 127))
    ends = amounts.reshape(2, rank)[:, list(x.axes)].T.reshape(-1)
    stored = [shape_of(unit.out)[axis] for axis in x.axes]
    inputs = [
        x.tensor,
        lowering.writer.sizes(ends.tolist()),
        lowering.writer.scalar(small, INT8),
    ]
    padded = lowering.writer.op("Pad", inputs, stored, INT8)
    return _same(lowering, unit, Value(padded, x.axes), source)


def resizing(lowering: Lowering, unit: Unit) -> Value:
    """Resize of images: the nearest pixel, or between four."""
    source = activation(unit)
    image = lowering.arranged(lowering.value(source), _IMAGE)
    shape = shape_of(unit.out)
    attrs = root_of(unit).attrs
    mode = str(attrs.get("mode", "nearest"))
    if (
        len(shape) != 4
        or shape[:2] != shape_of(source)[:2]
        or mode not in ("nearest", "linear")
    ):
        raise Refused(f"it resizes by mode {mode}")
    how = str(attrs.get("coordinate_transformation_mode", "half_pixel"))
    steps = [_steps(how, mode, a, b) for a, b in zip(image.shape[1:3], shape[2:], strict=True)]
    (n_y, d_y, o_y), (n_x, d_x, o_x) = steps
    borders = [
        (size - 1) * d - (before - 1) * n + o
        for (n, d, o), before, size in zip(steps, image.shape[1:3], shape[2:], strict=True)
    ]
    writer = lowering.writer
    inputs = [image, *(writer.sizes(v) for v in ((n_y, d_y, n_x, d_x), (o_y, o_x), borders))]
    stored = (shape[0], *shape[2:], shape[1])
    if mode == "nearest":
        small = writer.op("Resize", inputs, stored, INT8, ts.ResizeMode.NEAREST)
    else:
        sums = writer.op("Resize", inputs, stored, INT32, ts.ResizeMode.BILINEAR)
        small = writer.rescale(sums, Scale.of(1 / (n_y * n_x)), INT8)
    return _same(lowering, unit, Value(small, _IMAGE), source)


def _steps(how: str, mode: str, before: int, size: int) -> tuple[int, int, int]:
    """Return TOSA's scale, as numerator and denominator, and offset, for one axis.

    Place y of the result is (y times denominator plus offset) over numerator in the source.
    """
    if how == "align_corners" and size > 1:
        ratio = Fraction(size - 1, max(before - 1, 1))
        return ratio.numerator * 2, ratio.denominator * 2, 0
    ratio = Fraction(size, before)
    if how in ("half_pixel", "pytorch_half_pixel") or (
        mode == "nearest" and ratio.denominator == 1
    ):
        # (y + 1/2) / ratio - 1/2; a whole number of nearest pixels is the same from any corner.
        return ratio.numerator * 2, ratio.denominator * 2, ratio.denominator - ratio.numerator
    if how == "asymmetric" and mode == "linear":
        return ratio.numerator * 2, ratio.denominator * 2, 0
    raise Refused(f"it resizes {before} to {size} in the mode {how}")


def _part(lowering: Lowering, unit: Unit, x: Value, source: Small, first: list[int]) -> Value:
    shape = shape_of(unit.out)
    stored = [shape[axis] for axis in x.axes]
    part = lowering.writer.slice(x.tensor, [first[axis] for axis in x.axes], stored)
    return _same(lowering, unit, Value(part, x.axes), source)


def _same(lowering: Lowering, unit: Unit, value: Value, source: Small) -> Value:
    return Value(lowering.like_result(unit, value.tensor, source), value.axes)
