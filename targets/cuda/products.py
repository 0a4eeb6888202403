"""Which Relax calls are products of matrices, and where their matrices lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from tilewright.targets.cuda.constants import constant_of
from tilewright.targets.cuda.shapes import is_float32, tensor_shape
from tilewright.targets.cuda.tiling import Place, Product, Source
from tilewright.targets.kernels.pen import Expr

_MOST_BATCHES = 65_535  # blocks along the third axis of a launch


@dataclass(frozen=True)
class Call:
    """A Relax call that is a product: the shape of its result and, if constant, its matrix.

    `matrix` is W as (outputs, columns); None where W is computed at run time.
    """

    product: Product
    matrix: np.ndarray | None
    shape: tuple[int, ...]


def convolution(builder: Any, call: Any) -> Call | None:
    """Return the product that a relax.nn.conv2d is, or None where it has groups or such."""
    x, weight = tensor_shape(call.args[0]), constant_of(builder, call.args[1])
    attrs = call.attrs
    plain = (attrs.data_layout, attrs.kernel_layout, attrs.groups) == ("NCHW", "OIHW", 1)
    if not plain or x is None or weight is None or not is_float32(*call.args):
        return None
    images, channels, height, width = x
    outputs, _, rows, columns = weight.shape
    strides, dilation = _ints(attrs.strides), _ints(attrs.dilation)
    top, left, bottom, right = _ints(attrs.padding)
    high = (height + top + bottom - dilation[0] * (rows - 1) - 1) // strides[0] + 1
    wide = (width + left + right - dilation[1] * (columns - 1) - 1) // strides[1] + 1
    padded = any((top, left, bottom, right))

    def x_at(b: Expr, k: Expr, m: Expr) -> Place:
        tap = k % (rows * columns)
        row = m // wide * strides[0] + tap // columns * dilation[0] - top
        column = m % wide * strides[1] + tap % columns * dilation[1] - left
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return (b, k // (rows * columns), row, column), inside if padded else None

    def y_at(b: Expr, n: Expr, m: Expr) -> Place:
        return (b, n, *_unravel(m, (high, wide))), None

    shape = (images, outputs, high, wide)
    product = Product(
        batch=images,
        outputs=outputs,
        columns=channels * rows * columns,
        positions=high * wide,
        x=Source(x, x_at),
        y=Source(shape, y_at),
    )
    return Call(product, weight.reshape(outputs, -1), shape)


def multiplication(builder: Any, call: Any) -> Call | None:
    """Return the product that a relax.matmul is, or None where it has no rows or columns."""
    x, w = (tensor_shape(argument) for argument in call.args)
    if x is None or w is None or min(len(x), len(w)) < 2 or not is_float32(*call.args):
        return None
    if len(w) == 2:
        matrix = constant_of(builder, call.args[1])
        return _by_matrix(x, w, None if matrix is None else matrix.T)
    found = _batched(x, w)
    return found if found.product.batch <= _MOST_BATCHES else None


def _by_matrix(x: tuple[int, ...], w: tuple[int, ...], matrix: np.ndarray | None) -> Call:
    lead, shape = x[:-1], (*x[:-1], w[1])
    product = Product(
        batch=1,
        outputs=w[1],
        columns=w[0],
        positions=math.prod(lead),
        x=Source(x, lambda b, k, m: ((*_unravel(m, lead), k), None)),
        y=Source(shape, lambda b, n, m: ((*_unravel(m, lead), n), None)),
        w=None if matrix is not None else Source(w, lambda b, n, k: ((k, n), None)),
        outputs_last=True,
        columns_last=True,
    )
    return Call(product, matrix, shape)


def _batched(x: tuple[int, ...], w: tuple[int, ...]) -> Call:
    lead = tuple(int(extent) for extent in np.broadcast_shapes(x[:-2], w[:-2]))
    shape = (*lead, x[-2], w[-1])

    def within(b: Expr, extents: tuple[int, ...]) -> list[Expr]:
        places = _unravel(b, lead)[len(lead) - len(extents) :]
        return [0 if e == 1 else p for p, e in zip(places, extents, strict=True)]

    product = Product(
        batch=math.prod(lead),
        outputs=w[-1],
        columns=x[-1],
        positions=x[-2],
        x=Source(x, lambda b, k, m: ((*within(b, x[:-2]), m, k), None)),
        y=Source(shape, lambda b, n, m: ((*_unravel(b, lead), m, n), None)),
        w=Source(w, lambda b, n, k: ((*within(b, w[:-2]), k, n), None)),
        outputs_last=True,
        columns_last=True,
    )
    return Call(product, None, shape)


def _unravel(flat: Expr, extents: Sequence[int]) -> list[Expr]:
    """Return the indices of an entry of a row-major array; no more is divided than must be.

    TVM cannot tell what is written where an index is m // 6, always 0 for the m that there are.
    """
    indices: list[Expr] = []
    for axis, extent in enumerate(extents):
        before, behind = math.prod(extents[:axis]), math.prod(extents[axis + 1 :])
        index = flat if behind == 1 else flat // behind
        indices.append(0 if extent == 1 else index if before == 1 else index % extent)
    return indices


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
