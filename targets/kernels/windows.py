"""Kernels that move a window over planes: depthwise convolution and pooling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Strides, cut, each_row
from tilewright.targets.kernels.pen import Expr, Isa, Local, Pen, vector_starts
from tilewright.targets.kernels.planes import PlaneShape, fill, fill_row
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.kernels.vector_math import Math, number

_PARALLEL_TAPS = 100_000  # below, the launch of the pool costs more than it saves
_REPEATED = 1.15  # of the input's rows, those counted twice that two slices need
_WEIGHTS = 0  # the number of the argument, where there is one
SOURCE = -1  # the argument that comes last

# Gives (row, column, width) of the input.
Read = Callable[[Expr, Expr, int], Expr]


class Slice(NamedTuple):
    """A slice to compute: how its plane is read, its image, its channel, its first row."""

    read: Read
    b: Expr
    n: Expr
    y: Expr


@dataclass(frozen=True)
class PlaneKernel:
    """Depthwise convolution ("conv"), or pooling ("max", "average"), ending in a chain.

    Arguments: for "conv" the weights (channel, ky, kx), for "average" with `counted` the
    reciprocal number of inputs under each window (out_height, out_width); operands and outputs
    of the chain; source. Channel n of the output reads channel n // `multiplier`. Slices of
    `slice_positions` of the input or more are cut in two, where their rows can be.

    The threads share slices of rows before they share channels: neighbouring layers then find
    most of the rows they read where the same thread wrote them.
    """

    op: str
    images: int
    channels: int
    shape: PlaneShape
    source: Strides
    tail: Tail
    counted: bool = False
    multiplier: int = 1
    slice_positions: int = 2048

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        return {"conv": "depthwise", "max": "max_pool", "average": "average_pool"}[self.op]

    @property
    def slices(self) -> int:
        """How many slices of rows a plane is computed in, each at a time from a scratch."""
        s, count = self.shape, 1
        while s.height * s.width // count >= self.slice_positions:
            more = 2 * count
            if s.out_height % more or self._rows(more) * more > _REPEATED * s.height:
                break
            count = more
        return count

    @property
    def rows(self) -> int:
        """Rows of the input that a slice needs at most; 0 or less where it is all padding."""
        return self._rows(self.slices)

    def _rows(self, count: int) -> int:
        s, part = self.shape, self._slice(count)
        starts = (i * part.out_height * s.stride[0] - s.top for i in range(count))
        return max(min(at + part.reach[0], s.height) - max(at, 0) for at in starts)

    @property
    def slice(self) -> PlaneShape:
        """The planes' shape with the rows of output of one slice."""
        return self._slice(self.slices)

    def _slice(self, count: int) -> PlaneShape:
        return replace(self.shape, out_height=self.shape.out_height // count)

    @property
    def edge(self) -> float:
        """What padding holds."""
        return -math.inf if self.op == "max" else 0.0

    @property
    def parallel(self) -> bool:
        """Whether it pays to wake the threads."""
        s = self.shape
        taps = 8 + s.kernel[0] * s.kernel[1]  # storing and copying, as so many taps
        places = self.images * self.channels * s.out_height * s.out_width
        return places * taps >= _PARALLEL_TAPS

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*self.behind_source(), "float32")

    def behind_source(self) -> tuple[str, ...]:
        """Base arrays of the arguments that are not about the source."""
        return (*("weights",) * self._weighted, *self.tail.kinds())

    @property
    def _weighted(self) -> bool:
        return self.op == "conv" or self.counted

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        source = len(self.behind_source())
        count = self.images * self.slices * self.channels
        with pen.shared(self.parallel) as share:
            scratch = self.scratch(pen)
            with share.pieces(count) as (low, high):

                def slice_of(i: Expr) -> Slice:
                    flat = pen.register(low + i)
                    n = pen.register(flat % self.channels)
                    b = pen.register(flat // (self.channels * self.slices))
                    y = flat // self.channels % self.slices * self.slice.out_height

                    def read(row: Expr, column: Expr, width: int) -> Expr:
                        at = self.source.at(b, n // self.multiplier, row, column)
                        return pen.load(source, at, width, stride=self.source.x)

                    return Slice(read, b, n, pen.register(y))

                self.compute(pen, scratch, high - low, slice_of)

    def scratch(self, pen: Pen) -> Local:
        """Return memory for the padded slices of two planes, their padding in place."""
        elements = 2 * self._padded(pen)
        scratch = pen.local(elements)
        fill(pen, elements, self.edge, "float32", scratch.store)
        return scratch

    def _padded(self, pen: Pen) -> int:
        # Vectors of the last row may run over its end: into numbers that cost no assists.
        return self.slice.elements + pen.isa.lanes

    def compute(
        self, pen: Pen, scratch: Local, count: Expr, slice_of: Callable[[Expr], Slice]
    ) -> None:
        """Compute slices 0 to `count` - 1, and store them.

        Each is copied while windows move over the one before: a vector that is read across
        what was stored in pieces just before would wait until all of it is in the cache.
        """
        count = pen.register(count)
        with pen.serial(count + 1) as i:
            with T.If(i < count), T.Then():
                self._fill(pen, self._turn(pen, scratch, i), slice_of(i))
            with T.If(i > 0), T.Then():
                before = pen.opaque(i - 1)
                self._sweep(pen, self._turn(pen, scratch, before), slice_of(before))

    def _turn(self, pen: Pen, scratch: Local, i: Expr) -> Local:
        return scratch.behind(pen.opaque(i % 2 * self._padded(pen)))

    def _sweep(self, pen: Pen, scratch: Local, here: Slice) -> None:
        """Move the window over a slice."""
        part = self.slice
        bands = -(-part.out_height // _accumulators(pen.isa))
        rows = -(-part.out_height // bands)
        width = part.out_width
        lanes = pen.isa.lanes
        while lanes // 2 >= width:
            lanes //= 2
        most = max(1, _accumulators(pen.isa) // rows)
        with pen.serial(bands) as band:
            first = pen.register(tirx.min(band * rows, part.out_height - rows))
            for nest in cut(1, max(width, lanes), lanes, most):
                with nest.walk(pen) as (_, x):
                    base = pen.register(first * part.phase[1] + x)
                    sums = self._windows(pen, scratch, rows, here.n, base, nest.places, lanes)
                    with each_row(pen, sums, lanes) as (row, values):
                        for (_, dx), value in zip(nest.places, values, strict=True):
                            y = here.y + first + row
                            self._store(pen, value, lanes, (here.b, here.n, y, x + dx))

    def _fill(self, pen: Pen, scratch: Local, here: Slice) -> None:
        """Copy what the windows of a slice touch; columns beside it stay."""
        part, y = self.slice, here.y
        touched = part.reach[0]
        above = part.top - y * part.stride[0]  # rows before the first of the input
        first = pen.register(tirx.min(tirx.max(above, 0), touched))
        stop = pen.register(tirx.max(tirx.min(above + part.height, touched), first))
        if part != self.shape:
            # A row beside the plane may have been within it for the slice before.
            for begin, end in ((0, first), (stop, touched)):
                with pen.serial(end - begin) as i:
                    for phase in range(part.stride[1]):
                        row = pen.register(part.row(begin + i, phase))
                        at = scratch.behind(row)
                        fill(pen, part.phase[1], self.edge, "float32", at.store)
        with pen.serial(stop - first) as i:
            row = pen.register(first + i)
            fill_row(pen, part, row, row - above, here.read, scratch.store)

    def _windows(
        self,
        pen: Pen,
        scratch: Local,
        height: int,
        n: Expr,
        base: Expr,
        places: Sequence[tuple[int, int]],
        lanes: int,
    ) -> list[list[Expr]]:
        """Return the sums (`height` rows, places) of the windows from `base` on.

        Taps of one column of the window run together: each vector is loaded once for all rows
        of the window that it meets, while their weights stay in registers.
        """
        part = self.slice
        rows, columns = part.kernel
        sums = [[pen.local(lanes) for _ in places] for _ in range(height)]
        for cells in sums:
            for cell in cells:
                cell.store(0, number(self.edge, "float32", lanes), lanes)
        for kxs in _by_phase(columns, part.stride[1], part.dilation[1]):
            apart = kxs[1] - kxs[0] if len(kxs) > 1 else 0
            step = apart * part.dilation[1] // part.stride[1]
            with pen.serial(len(kxs)) as j:
                weights = self._column(pen, n, kxs[0] + j * apart, lanes)
                at = pen.register(base + j * step)
                for kys in _by_phase(rows, part.stride[0], part.dilation[0]):
                    source = scratch.behind(at + part.tap(kys[0], kxs[0]))
                    self._join_taps(pen, source, sums, kys, places, weights, lanes)
        return [[cell.load(0, lanes) for cell in cells] for cells in sums]

    def _join_taps(
        self,
        pen: Pen,
        source: Local,
        sums: list[list[Local]],
        kys: Sequence[int],
        places: Sequence[tuple[int, int]],
        weights: dict[int, Expr],
        lanes: int,
    ) -> None:
        """Let each vector of a column of the input meet the taps `kys` of one column."""
        part, height = self.slice, len(sums)
        down = {ky: (ky - kys[0]) * part.dilation[0] // part.stride[0] for ky in kys}
        for row in range(height + down[kys[-1]]):
            meets = [(ky, row - down[ky]) for ky in kys if 0 <= row - down[ky] < height]
            for v, (_, dx) in enumerate(places if meets else ()):
                value = pen.register(source.load(row * part.phase[1] + dx, lanes))
                for ky, out in meets:
                    self._join(pen, lanes, sums[out][v], value, weights.get(ky))

    def _column(self, pen: Pen, n: Expr, kx: Expr, lanes: int) -> dict[int, Expr]:
        """Return the weights of one column of the window, by row."""
        if self.op != "conv":
            return {}
        rows, columns = self.shape.kernel
        at = pen.register(n * (rows * columns) + kx)
        return {
            ky: pen.register(pen.load(_WEIGHTS, at + ky * columns, lanes, stride=0))
            for ky in range(rows)
        }

    def _join(
        self, pen: Pen, lanes: int, cell: Local, value: Expr, weight: Expr | None
    ) -> None:
        total = cell.load(0, lanes)
        if self.op == "max":
            total = Math(pen, lanes, {}).extreme("maximum", total, value)
        else:
            total = total + (value if weight is None else value * weight)
        cell.store(0, total, lanes)

    def _store(
        self, pen: Pen, value: Expr, lanes: int, place: tuple[Expr, Expr, Expr, Expr]
    ) -> None:
        """Store a vector of results; of one that is wider than the plane, what lies in it."""
        b, n, y, x = place
        width = self.shape.out_width
        if lanes <= width:
            self._store_part(pen, value, lanes, place)
            return
        part = pen.isa.width_for(width)
        for start in vector_starts(width, part):
            lower = T.Shuffle([value], list(range(start, start + part)))
            self._store_part(pen, lower, part, (b, n, y, x + start))

    def _store_part(
        self, pen: Pen, value: Expr, width: int, place: tuple[Expr, Expr, Expr, Expr]
    ) -> None:
        s = self.shape
        _, _, y, x = place
        if self.counted:
            value = value * pen.load(_WEIGHTS, y * s.out_width + x, width)
        elif self.op == "average":
            value = value * number(1.0 / (s.kernel[0] * s.kernel[1]), "float32", width)
        self.tail.store(pen, int(self._weighted), value, place, width)


def _accumulators(isa: Isa) -> int:
    """Return how many sums stay in registers, beside a column's weights."""
    return isa.registers // 2


def _by_phase(taps: int, stride: int, dilation: int) -> list[list[int]]:
    """Group the taps of one axis by the phase of what they meet."""
    groups: dict[int, list[int]] = {}
    for tap in range(taps):
        groups.setdefault(tap * dilation % stride, []).append(tap)
    return list(groups.values())
