"""Layers: convolutions and matrix products, with int8 weights and int32 sums."""

import math
from typing import Any

import numpy as np

from tilewright.targets.npu.lower import Lowering, Value, activation, root_of, shape_of
from tilewright.targets.npu.matrix import Matrix, matrix_of, weights_of
from tilewright.targets.npu.operands import Refused, Weights
from tilewright.targets.npu.tosa import INT8, Tensor
from tilewright.targets.npu.units import Unit
from tilewright.targets.npu.window import fitted, window_of

_IMAGE = (0, 2, 3, 1)
_MOST_GROUPS = 64


def convolution(lowering: Lowering, unit: Unit) -> Value:
    """Conv of images or of sequences; grouped ones piece by piece."""
    node, source = root_of(unit), activation(unit)
    values = weights_of(unit).values
    rank = values.ndim - 2
    if rank not in (1, 2):
        raise Refused(f"it is a convolution of {rank} dimensions")
    x, shape = lowering.value(source), shape_of(unit.out)
    image = _as_image(lowering, x)
    kernel = (1, *values.shape[2:])[-2:]
    window = window_of(node, kernel, image.shape[1:3])
    matrix = matrix_of(unit, 0, source.scale)
    w = matrix.values.reshape(*values.shape[:2], *kernel)
    groups = int(node.attrs.get("group", 1))
    out = (shape[0], *(1, *shape[2:])[-2:], shape[1])
    image, pads = fitted(lowering, image, window, out[1:3])
    attributes = pads, window.strides, window.dilations
    if groups > 1 and w.shape[1] == 1 and groups == image.shape[3]:
        # (channels times multiplier, 1, height, width) to (height, width, channels, multiplier)
        w = w.reshape(groups, -1, *kernel).transpose(2, 3, 0, 1)
        sums = lowering.writer.layer(
            "DepthwiseConv2d", image, w, matrix.bias, source.zero, out, *attributes
        )
    elif groups == 1:
        w = w.transpose(0, 2, 3, 1)
        sums = lowering.writer.layer(
            "Conv2d", image, w, matrix.bias, source.zero, out, *attributes
        )
    else:
        return _as_onnx(
            lowering, unit, _grouped(lowering, unit, image, w, matrix, out, attributes)
        )
    small = lowering.rounded(unit, sums, source.scale * matrix.scales)
    return _as_onnx(lowering, unit, small)


def _grouped(
    lowering: Lowering,
    unit: Unit,
    image: Tensor,
    w: np.ndarray,
    matrix: Matrix,
    out: tuple[int, ...],
    attributes: tuple[Any, ...],
) -> Tensor:
    """Convolve each group of channels by itself, and put the results side by side."""
    source, writer = activation(unit), lowering.writer
    groups = image.shape[3] // w.shape[1]
    if groups > _MOST_GROUPS:
        raise Refused(f"its convolution has {groups} groups, and more than {_MOST_GROUPS}")
    each, read = w.shape[0] // groups, w.shape[1]
    parts = []
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        x = writer.slice(image, (0, 0, 0, group * read), (*image.shape[:3], read))
        sums = writer.layer(
            "Conv2d",
            x,
            w[rows].transpose(0, 2, 3, 1),
            matrix.bias[rows],
            source.zero,
            (*out[:3], each),
            *attributes,
        )
        parts.append(lowering.rounded(unit, sums, source.scale * matrix.scales[rows]))
    return writer.op("Concat", parts, out, INT8, 3)


def transposed(lowering: Lowering, unit: Unit) -> Value:
    """ConvTranspose of images, without groups and dilations."""
    node, source = root_of(unit), activation(unit)
    values = weights_of(unit).values
    if values.ndim != 4 or int(node.attrs.get("group", 1)) != 1:
        raise Refused("it is grouped, or no transposed convolution of images")
    if any(d != 1 for d in node.attrs.get("dilations", ())):
        raise Refused("its transposed convolution is dilated")
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attrs:
        raise Refused("its pads are not written out")
    matrix = matrix_of(unit, 1, source.scale)
    rows = matrix.values.reshape(values.shape[1], values.shape[0], *values.shape[2:])
    top, left, bottom, right = node.attrs.get("pads", [0] * 4)
    more = node.attrs.get("output_padding", [0, 0])
    pads = (-top, more[0] - bottom, -left, more[1] - right)
    shape = shape_of(unit.out)
    image = lowering.arranged(lowering.value(source), _IMAGE)
    sums = lowering.writer.layer(
        "TransposeConv2d",
        image,
        rows.transpose(0, 2, 3, 1),
        matrix.bias,
        source.zero,
        (shape[0], *shape[2:], shape[1]),
        pads,
        node.attrs.get("strides", [1, 1]),
    )
    return Value(lowering.rounded(unit, sums, source.scale * matrix.scales), _IMAGE)


def product(lowering: Lowering, unit: Unit) -> Value:
    """MatMul or Gemm: by constant weights a convolution of 1 by 1, else MATMUL."""
    node = root_of(unit)
    if not isinstance(unit.operands[1], Weights):
        return _pairs(lowering, unit)
    source = activation(unit)
    if weights_of(unit).values.ndim != 2:
        raise Refused(f"its weights have {weights_of(unit).values.ndim} axes, and not two")
    if node.attrs.get("transA"):
        raise Refused("its Gemm transposes what it reads")
    x = lowering.value(source)
    last = len(x.axes) - 1
    if x.axes[last] != last:
        x = Value(lowering.plain(x), tuple(range(last + 1)))
    matrix = matrix_of(unit, 0 if node.attrs.get("transB") else 1, source.scale)
    outputs, inputs = matrix.values.shape
    positions = math.prod(x.tensor.shape[:-1])
    rows = lowering.writer.reshape(x.tensor, (1, positions, 1, inputs))
    sums = lowering.writer.layer(
        "Conv2d",
        rows,
        matrix.values.reshape(outputs, 1, 1, inputs),
        matrix.bias,
        source.zero,
        (1, positions, 1, outputs),
        (0, 0, 0, 0),
        (1, 1),
        (1, 1),
    )
    factor = source.scale * matrix.scales * float(node.attrs.get("alpha", 1.0))
    small = lowering.rounded(unit, sums, factor)
    return Value(lowering.writer.reshape(small, (*x.tensor.shape[:-1], outputs)), x.axes)


def _pairs(lowering: Lowering, unit: Unit) -> Value:
    """Multiply two int8 tensors, matrix by matrix."""
    a, b = activation(unit, 0), activation(unit, 1)
    if root_of(unit).op != "MatMul" or unit.bias is not None:
        raise Refused("it is a Gemm without constant weights")
    left, right = shape_of(a), shape_of(b)
    if left[:-2] != right[:-2] or len(left) < 2:
        raise Refused(f"it multiplies {list(left)} by {list(right)}")
    batch = math.prod(left[:-2])
    x = lowering.writer.reshape(lowering.plain(lowering.value(a)), (batch, *left[-2:]))
    y = lowering.writer.reshape(lowering.plain(lowering.value(b)), (batch, *right[-2:]))
    sums = lowering.writer.matmul(x, y, (a.zero, b.zero))
    small = lowering.rounded(unit, sums, a.scale * b.scale)
    shape = shape_of(unit.out)
    return Value(lowering.writer.reshape(small, shape), tuple(range(len(shape))))


def _as_image(lowering: Lowering, x: Value) -> Tensor:
    """Return (batch, height, width, channels); a sequence is an image of height 1."""
    if len(x.axes) == 4:
        return lowering.arranged(x, _IMAGE)
    rows = lowering.arranged(x, (0, 2, 1))
    return lowering.writer.reshape(rows, (rows.shape[0], 1, *rows.shape[1:]))


def _as_onnx(lowering: Lowering, unit: Unit, image: Tensor) -> Value:
    """Return an image as what the unit writes."""
    if len(shape_of(unit.out)) == 4:
        return Value(image, _IMAGE)
    batch, _, width, channels = image.shape
    return Value(lowering.writer.reshape(image, (batch, width, channels)), (0, 2, 1))
