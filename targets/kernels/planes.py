"""Kernels over planes (one channel of one image): padding, depthwise convolution, pooling.

A plane is copied once into a padded scratch whose rows and columns are sorted by their phase
(index modulo stride). A tap of the window is then a contiguous vector at any stride, without a
border case in the inner loop.
"""

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.pen import Expr, Pen
from tilewright.targets.kernels.vector_math import number

_SHUFFLED = 4  # columns apart up to which whole vectors are loaded, and sorted
_PARALLEL_ELEMENTS = 10_000  # to copy


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
        sx = self.stride[1]
        return int(self.row(y, x % sx)) + x // sx

    def row(self, y: Expr, phase: int) -> Expr:
        """Offset of padded row y, its columns of one phase, in the scratch."""
        rows, columns = self.phase
        sy, sx = self.stride
        return ((y % sy * sx + phase) * rows + y // sy) * columns


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
    # Input rows that some window touches, and scratch rows that have no input row.
    touched = min(shape.height, shape.reach[0] - shape.top)
    inside = min(shape.width, shape.reach[1] - shape.left)
    bordered = shape.elements != touched * inside
    if bordered:
        fill(pen, shape.elements, edge, dtype, write)
    with pen.serial(touched) as y:
        fill_row(pen, shape, y + shape.top, y, read, write)


def fill_row(pen: Pen, shape: PlaneShape, row: Expr, y: Expr, read: Expr, write: Expr) -> None:
    """Copy row y of the input to row `row` of the padded, phase-sorted scratch."""
    sx = shape.stride[1]
    inside = min(shape.width, shape.reach[1] - shape.left)
    for px in range(sx):
        # Columns x of the input with (x + left) % sx == px, from the first on.
        start = (px - shape.left) % sx
        count = len(range(start, inside, sx))
        if count <= 0:
            continue
        target = pen.register(shape.row(row, px) + (start + shape.left) // sx)
        width = pen.isa.width_for(count)
        with pen.serial(count // width) as v:
            x = v * width
            write(target + x, _strided(pen, read, y, start + x * sx, width, sx), width)
        if count % width:
            x = count - width
            write(target + x, _strided(pen, read, y, start + x * sx, width, sx), width)


def _strided(pen: Pen, read: Expr, y: Expr, x: Expr, width: int, step: int) -> Expr:
    """Read `width` columns `step` apart; up to three behind the last may be touched too."""
    if step == 1 or width == 1:
        return read(y, x, width)
    if step > _SHUFFLED:
        return T.Shuffle([read(y, x + i * step, 1) for i in range(width)], list(range(width)))
    parts = [read(y, x + i * width, width) for i in range(step)]
    return T.Shuffle(parts, list(range(0, step * width, step)))


def fill(pen: Pen, elements: int, edge: float, dtype: str, write: Expr) -> None:
    """Write one number everywhere; `write(offset, value, width)` puts it."""
    width = pen.isa.width_for(elements)
    with pen.serial(elements // width) as v:
        write(v * width, number(edge, dtype, width), width)
    if elements % width:
        write(elements - width, number(edge, dtype, width), width)
