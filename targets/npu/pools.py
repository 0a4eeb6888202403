"""Pools and reductions: means and sums are exact in int32, and rounded once."""

import math

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
from tilewright.targets.npu.operands import Refused
from tilewright.targets.npu.tosa import INT8, INT32, Scale, Tensor
from tilewright.targets.npu.units import Unit
from tilewright.targets.npu.window import Window, fitted, window_of

_IMAGE = (0, 2, 3, 1)
_KEEPS_NAN = ts.NanPropagationMode.PROPAGATE


def average(lowering: Lowering, unit: Unit) -> Value:
    """AveragePool: a depthwise convolution by ones, so that the sum is rounded once."""
    window, image = _window(lowering, unit)
    node = root_of(unit)
    assert node is not None, "rules by an operator get units that have one"
    if any(window.pads) and not node.attrs.get("count_include_pad"):
        raise Refused("its windows hold different numbers of values")
    return _mean(lowering, unit, image, window, shape_of(unit.out)[2:])


def global_average(lowering: Lowering, unit: Unit) -> Value:
    """GlobalAveragePool: one window over the whole image."""
    image = _image(lowering, unit)
    whole = Window((image.shape[1], image.shape[2]), (1, 1), (1, 1), (0, 0, 0, 0))
    return _mean(lowering, unit, image, whole, (1, 1))


def largest(lowering: Lowering, unit: Unit) -> Value:
    """MaxPool: the largest integer stands for the largest float."""
    window, image = _window(lowering, unit)
    if window.dilations != (1, 1):
        raise Refused("its windows are dilated")
    shape = shape_of(unit.out)
    cut, pads = fitted(lowering, image, window, shape[2:])
    out = (shape[0], *shape[2:], shape[1])
    small = lowering.writer.op(
        "MaxPool2d",
        [cut],
        out,
        INT8,
        list(window.kernel),
        list(window.strides),
        list(pads),
        _KEEPS_NAN,
    )
    return Value(lowering.like_result(unit, small, activation(unit)), _IMAGE)


def global_largest(lowering: Lowering, unit: Unit) -> Value:
    """GlobalMaxPool: the largest of each channel."""
    x = lowering.value(activation(unit))
    return _largest_along(lowering, unit, x, (2, 3))


def reduction(lowering: Lowering, unit: Unit) -> Value:
    """ReduceMean, ReduceSum and ReduceMax, along constant axes."""
    source = activation(unit)
    x, shape = lowering.value(source), shape_of(source)
    axes = _axes(unit, len(shape))
    if unit.op == "ReduceMax":
        return _largest_along(lowering, unit, x, axes)
    if unit.op == "ReduceMean" and len(shape) == 4 and axes == (2, 3):
        return _kept(lowering, unit, global_average(lowering, unit))
    one = Scale.of(1.0)
    sums = lowering.writer.rescale(x.tensor, one, INT32, source.zero)
    for axis in axes:
        sums = _reduced(lowering, "ReduceSum", sums, x.axes.index(axis))
    count = math.prod(shape[axis] for axis in axes) if unit.op == "ReduceMean" else 1
    small = lowering.rounded(unit, sums, source.scale / count)
    return _kept(lowering, unit, Value(small, x.axes))


def _largest_along(lowering: Lowering, unit: Unit, x: Value, axes: tuple[int, ...]) -> Value:
    small = x.tensor
    for axis in axes:
        small = _reduced(lowering, "ReduceMax", small, x.axes.index(axis))
    same = lowering.like_result(unit, small, activation(unit))
    return _kept(lowering, unit, Value(same, x.axes))


def _reduced(lowering: Lowering, op: str, x: Tensor, axis: int) -> Tensor:
    shape = [1 if a == axis else size for a, size in enumerate(x.shape)]
    more = (_KEEPS_NAN,) if op == "ReduceMax" else ()
    return lowering.writer.op(op, [x], shape, x.dtype, axis, *more)


def _kept(lowering: Lowering, unit: Unit, value: Value) -> Value:
    """Return a reduction's result without the axes of size 1 that the unit does not keep."""
    shape = shape_of(unit.out)
    if value.shape == shape:
        return value
    plain = lowering.writer.reshape(lowering.plain(value), shape)
    return Value(plain, tuple(range(len(shape))))


def _axes(unit: Unit, rank: int) -> tuple[int, ...]:
    given = constant_of(unit, 1)
    axes = root_of(unit).attrs.get("axes") if given is None else given.reshape(-1).tolist()
    if axes is None or not len(axes):
        if root_of(unit).attrs.get("noop_with_empty_axes"):
            raise Refused("it reduces nothing")
        axes = range(rank)
    return tuple(sorted({int(axis) % rank for axis in axes}))


def _window(lowering: Lowering, unit: Unit) -> tuple[Window, Tensor]:
    """Return a pool's window and the image that it moves over."""
    node, image = root_of(unit), _image(lowering, unit)
    kernel = tuple(int(k) for k in node.attrs["kernel_shape"])
    if len(kernel) != 2 or len(node.outputs) > 1:
        raise Refused("it is no pool of images")
    return window_of(node, kernel, image.shape[1:3]), image


def _image(lowering: Lowering, unit: Unit) -> Tensor:
    x = lowering.value(activation(unit))
    if len(x.axes) != 4:
        raise Refused("it is no pool of images")
    return lowering.arranged(x, _IMAGE)


def _mean(
    lowering: Lowering, unit: Unit, image: Tensor, window: Window, out: tuple[int, ...]
) -> Value:
    source = activation(unit)
    cut, pads = fitted(lowering, image, window, out)
    channels, taps = image.shape[3], math.prod(window.kernel)
    sums = lowering.writer.layer(
        "DepthwiseConv2d",
        cut,
        np.ones((*window.kernel, channels, 1), np.int8),
        np.zeros(channels, np.int32),
        source.zero,
        (image.shape[0], *out, channels),
        pads,
        window.strides,
        window.dilations,
    )
    return Value(lowering.rounded(unit, sums, source.scale / taps), _IMAGE)
