"""What moves numbers about: views, parts, rows of tensors."""

import numpy as np

from tilewright.targets.npu.lower import (
    Lowering,
    Value,
    activation,
    constant_of,
    root_of,
    shape_of,
)
from tilewright.targets.npu.operands import Refused, Small
from tilewright.targets.npu.tosa import INT8
from tilewright.targets.npu.units import Unit

_IMAGE = (0, 2, 3, 1)


def reshaping(lowering: Lowering, unit: Unit) -> Value:
    """Reshape, Flatten, Squeeze, Unsqueeze: numbers stay in ONNX's order."""
    source, shape = activation(unit), shape_of(unit.out)
    flat = lowering.writer.reshape(lowering.plain(lowering.value(source)), shape)
    return _same(lowering, unit, Value(flat, tuple(range(len(shape)))), source)


def unfolding(lowering: Lowering, unit: Unit) -> Value:
    """DepthToSpace: channels become the pixels of a larger image."""
    source, attrs = activation(unit), root_of(unit).attrs
    batch, _, height, width = shape_of(source)
    size, (_, left, *_) = int(attrs["blocksize"]), shape_of(unit.out)
    writer = lowering.writer
    x = lowering.arranged(lowering.value(source), _IMAGE)
    if str(attrs.get("mode", "DCR")) == "CRD":
        apart = writer.reshape(x, (batch, height, width, left, size * size))
        x = writer.transpose(apart, (0, 1, 2, 4, 3))
    # A pixel's channels are the rows of its block, each of `size` pixels: those come between.
    rows = writer.reshape(x, (batch, height, width, size, size * left))
    woven = writer.transpose(rows, (0, 1, 3, 2, 4))
    image = writer.reshape(woven, (batch, height * size, width * size, left))
    return _same(lowering, unit, Value(image, _IMAGE), source)


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
    if np.isnan(number):
        raise Refused("it pads by NaN")
    small = int(np.clip(np.rint(number / source.scale) + source.zero, -128, 127))
    ends = amounts.reshape(2, rank)[:, list(x.axes)].T.reshape(-1)
    stored = [shape_of(unit.out)[axis] for axis in x.axes]
    inputs = [
        x.tensor,
        lowering.writer.sizes(ends.tolist()),
        lowering.writer.scalar(small, INT8),
    ]
    padded = lowering.writer.op("Pad", inputs, stored, INT8)
    return _same(lowering, unit, Value(padded, x.axes), source)


def _part(lowering: Lowering, unit: Unit, x: Value, source: Small, first: list[int]) -> Value:
    shape = shape_of(unit.out)
    stored = [shape[axis] for axis in x.axes]
    part = lowering.writer.slice(x.tensor, [first[axis] for axis in x.axes], stored)
    return _same(lowering, unit, Value(part, x.axes), source)


def _same(lowering: Lowering, unit: Unit, value: Value, source: Small) -> Value:
    return Value(lowering.like_result(unit, value.tensor, source), value.axes)
