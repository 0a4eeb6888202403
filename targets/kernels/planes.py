"""Kernels over planes (one channel of one image): padding, depthwise convolution, pooling.

A plane is copied once into a padded scratch whose rows and columns are sorted by their phase
(index modulo stride). A tap of the window is then a contiguous vector at any stride, without a
border case in the inner loop.
"""

import math
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Strides, cut
from tilewright.targets.kernels.elementwise import Math, number
from tilewright.targets.kernels.pen import Expr, Local, Pen
from tilewright.targets.kernels.tail import Tail

_PARALLEL_ELEMENTS = 10_000
_ACCUMULATORS = 8


@dataclass(frozen=True)
class PlaneShape:
    """A plane, what surrounds it and how a window moves over it.

    `top` and `left` are padding before, `height` and `width` the input's extent, `out_height`
    and `out_width` the output's; `kernel`, `stride`, `dilation` are (rows, columns).
    """

    height: int
    width: int
    top: int
    left: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the padded input that any window touches."""
        reach = (
            (out - 1) * stride + (kernel - 1) * dilation + 1
            for out, stride, kernel, dilation in zip(
                (self.out_height, self.out_width),
                self.stride,
                self.kernel,
                self.dilation,
                strict=True,
            )
        )
        rows, columns = reach
        return rows, columns

    @property
    def phase(self) -> tuple[int, int]:
        """Rows and columns of one phase of the scratch."""
        rows, columns = self.reach
        return -(-rows // self.stride[0]), -(-columns // self.stride[1])

    @property
    def elements(self) -> int:
        """Size of the scratch."""
        rows, columns = self.phase
        return rows * columns * self.stride[0] * self.stride[1]

    def tap(self, ky: int, kx: int) -> int:
        """Offset of a window's tap in the scratch, for the window of output (0, 0)."""
        return self.at(ky * self.dilation[0], kx * self.dilation[1])

    def at(self, y: int, x: int) -> int:
        """Offset of padded row y, column x in the scratch."""
        rows, columns = self.phase
        sy, sx = self.stride
        return ((y % sy * sx + x % sx) * rows + y // sy) * columns + x // sx


@dataclass(frozen=True)
class PadKernel:
    """Copy planes into padded, phase-sorted planes: the source of a dense k x k convolution."""

    images: int
    channels: int
    shape: PlaneShape
    source: Strides
    target: tuple[int, int]  # strides of image and channel
    dtype: str = "float32"
    edge: float = 0.0

    name = "pad"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays: source, target."""
        return (self.dtype, self.dtype)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        count = self.images * self.channels
        with pen.parallel(count, count * self.shape.elements >= _PARALLEL_ELEMENTS) as flat:
            b, n = flat // self.channels, flat % self.channels
            base = pen.register(b * self.target[0] + n * self.target[1])
            fill_plane(
                pen,
                self.shape,
                self.edge,
                self.dtype,
                lambda y, x, width: pen.load(
                    0, self.source.at(b, n, y, x), width, stride=self.source.x
                ),
                lambda at, value, width: pen.store(1, base + at, value, width),
            )


@dataclass(frozen=True)
class PlaneKernel:
    """Depthwise convolution ("conv"), or pooling ("max", "average"), ending in a chain.

    Arguments: source; for "conv" the weights (channel, ky, kx); for "average" with `counted`
    the reciprocal number of inputs under each window (out_height, out_width); then operands and
    outputs of the chain. Channel n of the output reads channel n // `multiplier`.
    """

    op: str
    images: int
    channels: int
    shape: PlaneShape
    source: Strides
    tail: Tail
    counted: bool = False
    multiplier: int = 1

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        return {"conv": "depthwise", "max": "max_pool", "average": "average_pool"}[self.op]

    @property
    def _first(self) -> int:
        return 1 + (self.op == "conv" or self.counted)

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        fixed = ("float32", "weights")[: self._first]
        return (*fixed, *self.tail.kinds())

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        s = self.shape
        count = self.images * self.channels
        edge = -math.inf if self.op == "max" else 0.0
        work = count * (
            s.elements + s.out_height * s.out_width * s.kernel[0] * s.kernel[1] // 8
        )
        with pen.parallel(count, work >= _PARALLEL_ELEMENTS) as flat:
            b = pen.register(flat // self.channels)
            n = pen.register(flat % self.channels)
            scratch = pen.local(s.elements)
            fill_plane(
                pen,
                s,
                edge,
                "float32",
                lambda y, x, width: pen.load(
                    0,
                    self.source.at(b, n // self.multiplier, y, x),
                    width,
                    stride=self.source.x,
                ),
                scratch.store,
            )
            for first, count, rows in bands(s, pen.isa.lanes):
                with pen.serial(count) as band:
                    y = pen.register(first + band * rows)
                    self._band(pen, scratch.load, rows, b, n, y)

    def _band(self, pen: Pen, load: Expr, rows: int, b: Expr, n: Expr, y: Expr) -> None:
        """Compute `rows` rows of the output from row y on.

        The window moves over the scratch as if its rows were one: lanes run on over the places
        between two rows, whose results nobody reads. Short rows fill vectors that way.
        """
        s = self.shape
        columns = s.phase[1]
        extent = (rows - 1) * columns + s.out_width
        lanes = pen.isa.width_for(extent)
        base = pen.register(y * columns)
        results = pen.local(extent)
        for nest in cut(1, extent, lanes, _ACCUMULATORS):
            with nest.walk(pen) as (_, x):
                sums: list[Expr] = [None] * len(nest.places)
                for ky in range(s.kernel[0]):
                    for kx in range(s.kernel[1]):
                        weight = None
                        if self.op == "conv":
                            index = n * (s.kernel[0] * s.kernel[1]) + (ky * s.kernel[1] + kx)
                            weight = pen.register(pen.load(1, index, lanes, stride=0))
                        for v, (_, dx) in enumerate(nest.places):
                            value = load(base + x + (s.tap(ky, kx) + dx), lanes)
                            sums[v] = pen.register(
                                self._join(pen, lanes, sums[v], value, weight)
                            )
                for (_, dx), total in zip(nest.places, sums, strict=True):
                    results.store(x + dx, total, lanes)
        width = pen.isa.width_for(s.out_width)
        whole, rest = divmod(s.out_width, width)
        with pen.serial(rows) as row:
            with pen.serial(whole) as v:
                self._store(pen, results, row, v * width, width, b, n, y)
            if rest:
                self._store(pen, results, row, s.out_width - width, width, b, n, y)

    def _store(
        self,
        pen: Pen,
        results: Local,
        row: Expr,
        x: Expr,
        width: int,
        b: Expr,
        n: Expr,
        y: Expr,
    ) -> None:
        s = self.shape
        result = pen.register(results.load(row * s.phase[1] + x, width))
        place = y + row
        if self.counted:
            share = pen.load(1, place * s.out_width + x, width)
            result = pen.register(result * share)
        elif self.op == "average":
            share = number(1.0 / (s.kernel[0] * s.kernel[1]), "float32", width)
            result = pen.register(result * share)

        self.tail.store(pen, self._first, result, (b, n, place, x), width)

    def _join(
        self, pen: Pen, lanes: int, total: Expr | None, value: Expr, weight: Expr | None
    ) -> Expr:
        if weight is not None:
            value = value * weight
        if total is None:
            return value
        if self.op != "max":
            return total + value
        return Math(pen, lanes, {}).extreme("maximum", total, value)


def bands(shape: PlaneShape, lanes: int) -> list[tuple[int, int, int]]:
    """Cut the output's rows into bands that fill the accumulators: (first row, bands, rows).

    Bands are as equal as they come: 28 rows, four at most at a time, are seven times four.
    """
    room = lanes * _ACCUMULATORS - shape.out_width
    most = min(shape.out_height, max(1, room // shape.phase[1] + 1))
    count = -(-shape.out_height // most)
    rows, larger = divmod(shape.out_height, count)
    cuts = [(0, larger, rows + 1), (larger * (rows + 1), count - larger, rows)]
    return [cut for cut in cuts if cut[1]]


def fill_plane(
    pen: Pen,
    shape: PlaneShape,
    edge: float,
    dtype: str,
    read: Expr,
    write: Expr,
) -> None:
    """Copy one plane into its padded, phase-sorted form.

    `read(y, x, width)` gives input elements, `write(offset, value, width)` puts them.
    """
    rows, columns = shape.phase
    sy, sx = shape.stride
    # Input rows that some window touches, and scratch rows that have no input row.
    touched = min(shape.height, shape.reach[0] - shape.top)
    inside = min(shape.width, shape.reach[1] - shape.left)
    bordered = shape.elements != touched * inside
    if bordered:
        _fill(pen, shape.elements, edge, dtype, write)
    with pen.serial(touched) as y:
        padded = y + shape.top
        for px in range(sx):
            # Columns x of the input with (x + left) % sx == px, from the first on.
            start = (px - shape.left) % sx
            count = len(range(start, inside, sx))
            if count <= 0:
                continue
            phase = (padded % sy * sx + px) * rows + padded // sy
            target = pen.register(phase * columns + (start + shape.left) // sx)
            width = pen.isa.width_for(count)
            with pen.serial(count // width) as v:
                x = v * width
                write(target + x, _strided(pen, read, y, start + x * sx, width, sx), width)
            if count % width:
                x = count - width
                write(target + x, _strided(pen, read, y, start + x * sx, width, sx), width)


def _strided(pen: Pen, read: Expr, y: Expr, x: Expr, width: int, step: int) -> Expr:
    if step == 1:
        return read(y, x, width)
    if width == 1:
        return read(y, x, 1)
    return T.Shuffle([read(y, x + i * step, 1) for i in range(width)], list(range(width)))


def _fill(pen: Pen, elements: int, edge: float, dtype: str, write: Expr) -> None:
    width = pen.isa.width_for(elements)
    with pen.serial(elements // width) as v:
        write(v * width, number(edge, dtype, width), width)
    if elements % width:
        write(elements - width, number(edge, dtype, width), width)
