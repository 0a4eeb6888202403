"""Rows of a tensor, walked with vectors: the loops under reductions, softmax, normalization.

Lanes hold either several rows side by side ("vertical": every step is a plain vector operation)
or neighbours within one row ("horizontal": lanes are combined at the end).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx

from tilewright.targets.kernels.map import indices_of
from tilewright.targets.kernels.pen import Expr, Isa, Pen
from tilewright.targets.kernels.vector_math import Math, number

_PARALLEL_ELEMENTS = 20_000


@dataclass(frozen=True)
class RowShape:
    """How rows lie in memory.

    `kept` are the axes that tell rows apart, `reduced` those within a row. Lanes run along the
    last kept axis (vertical) or the last reduced one (horizontal). `source` and `target` are
    strides over kept then reduced axes; a reduction's target has kept axes only.
    """

    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    source: tuple[int, ...]
    target: tuple[int, ...]
    vertical: bool

    @property
    def count(self) -> int:
        """Elements of a row."""
        return math.prod(self.reduced)


def each_row(pen: Pen, rows: RowShape, body: Callable[["Sweep", list[Expr]], None]) -> None:
    """Loop over the rows, or over vectors of rows; `body` gets a sweep and the row's place."""
    kept = list(rows.kept)
    parallel = math.prod(kept) * rows.count >= _PARALLEL_ELEMENTS
    if not rows.vertical:
        with pen.parallel(math.prod(kept), parallel) as flat:
            at = indices_of(pen, flat, kept)
            body(Sweep(pen, rows, at, 1), at)
        return
    *outer, lanes = kept
    for first, vectors, width in pieces_of(lanes, pen.isa):
        with pen.parallel(math.prod(outer) * vectors, parallel) as flat:
            at = indices_of(pen, flat // vectors, outer)
            at.append(pen.register(flat % vectors * width + first))
            body(Sweep(pen, rows, at, width), at)


def pieces_of(lanes: int, isa: Isa) -> Iterator[tuple[int, int, int]]:
    """Cut rows side by side into (first, vectors, width): 20 rows are 16 and 4.

    No two vectors share a row: bodies read what they wrote, and another thread may have it.
    Where there are many rows, a vector is two registers: sums need not wait for each other.
    """
    first = 0
    while first < lanes:
        rest = lanes - first
        width = 2 * isa.lanes if rest >= 4 * isa.lanes else isa.width_for(rest)
        vectors = (lanes - first) // width
        yield first, vectors, width
        first += vectors * width


class Sweep:
    """One row (or one vector of rows) at a time: folds over it and maps of it."""

    def __init__(self, pen: Pen, rows: RowShape, at: list[Expr], width: int) -> None:
        self.pen = pen
        self.rows = rows
        self.width = width
        self.math = Math(pen, width, {})
        kept = len(rows.kept)
        self._steps = rows.source[kept:]
        self._target_steps = rows.target[kept:]
        zero = tirx.const(0, "int32")
        self.source_base = pen.register(
            sum((a * s for a, s in zip(at, rows.source, strict=False) if s), zero)
        )
        self.target_base = pen.register(
            sum((a * s for a, s in zip(at, rows.target, strict=False) if s), zero)
        )
        self._place: tuple[Expr, int] = (zero, width)

    def first(self) -> Expr:
        """The row's first element."""
        stride = self.rows.source[len(self.rows.kept) - 1] if self.rows.vertical else 0
        return self.pen.register(self.pen.load(0, self.source_base, self.width, stride=stride))

    @property
    def here(self) -> Math:
        """Arithmetic of the width that the sweep runs at just now."""
        return Math(self.pen, self._place[1], {})

    def spread(self, value: Expr) -> Expr:
        """A row's value in all lanes of the vector at hand."""
        width = self._place[1]
        return value if width == self.width else tirx.Broadcast(value, width)

    def store_current(self, value: Expr, target: int = 1) -> None:
        """Write to a target at the place being read; targets lie alike."""
        place, width = self._place
        self.pen.store(target, place, value, width, stride=self._lane_step(1))

    def fold(
        self,
        starts: tuple[float, ...],
        update: Callable[[tuple[Expr, ...], Expr], tuple[Expr, ...]],
        combine: tuple[Callable[[Expr, Expr], Expr], ...],
    ) -> tuple[Expr, ...]:
        """Run through the row and return one total a start, of the rows' width."""
        width = self._inner_width()
        cells = [self.pen.local(width) for _ in starts]
        for cell, start in zip(cells, starts, strict=True):
            cell.store(0, number(start, "float32", width), width)
        narrow = [self.pen.local(1) for _ in starts]
        if not self.rows.vertical:
            for cell, start in zip(narrow, starts, strict=True):
                cell.store(0, number(start, "float32", 1), 1)

        def body(source: Expr, target: Expr, at: list[Expr], w: int) -> None:
            held = cells if w == width else narrow
            self._place = (target, w)
            x = self.pen.register(self._load(0, source, w))
            sums = update(tuple(cell.load(0, w) for cell in held), x)
            for cell, value in zip(held, sums, strict=True):
                cell.store(0, value, w)

        self._run(body)
        self._place = (self.target_base, self.width)
        if self.rows.vertical:
            return tuple(self.pen.register(cell.load(0, width)) for cell in cells)
        totals = []
        for cell, rest, join in zip(cells, narrow, combine, strict=True):
            total = rest.load(0)
            if width > 1:
                for lane in range(width):
                    total = self.pen.register(join(total, cell.load(lane)))
            else:
                total = cell.load(0)
            totals.append(self.pen.register(total))
        return tuple(totals)

    def each(
        self, function: Callable[[Expr, list[Expr], int], list[Expr]], again: bool = False
    ) -> None:
        """Write function(x, place, width), one value a target, for every x of the source.

        With `again`, for every x of the first target.
        """

        def body(source: Expr, target: Expr, at: list[Expr], w: int) -> None:
            self._place = (target, w)
            loaded = self._load(1, target, w) if again else self._load(0, source, w)
            for i, value in enumerate(function(self.pen.register(loaded), at, w)):
                self.store_current(value, 1 + i)

        self._run(body)

    def _load(self, arg: int, place: Expr, width: int) -> Expr:
        return self.pen.load(arg, place, width, stride=self._lane_step(arg))

    def _lane_step(self, arg: int) -> int:
        """Return how far neighbouring lanes of the source (0) or the target (1) are apart."""
        strides = (self.rows.source, self.rows.target)[arg]
        return strides[len(self.rows.kept) - 1] if self.rows.vertical else strides[-1]

    def _inner_width(self) -> int:
        if self.rows.vertical:
            return self.width
        extent = self.rows.reduced[-1]
        width = self.pen.isa.width_for(extent)
        while extent % width and width > 4:
            width //= 2
        return self.pen.isa.width_for(extent) if extent % width else width

    def _run(self, body: Callable[[Expr, Expr, list[Expr], int], None]) -> None:
        *outer, inner = self.rows.reduced
        with self.pen.serial(math.prod(outer)) as flat:
            at = indices_of(self.pen, flat, outer)
            source = self._offset(self.source_base, at, self._steps)
            target = self._offset(self.target_base, at, self._target_steps)
            step, out = self._steps[-1], (self._target_steps or (0,))[-1]
            if self.rows.vertical:
                with self.pen.serial(inner) as k:
                    body(source + k * step, target + k * out, [*at, k], self.width)
                return
            width = self._inner_width()
            with self.pen.serial(inner // width) as k:
                x = k * width
                body(source + x * step, target + x * out, [*at, x], width)
            if inner % width:
                with self.pen.serial(inner % width) as k:
                    x = inner // width * width + k
                    body(source + x * step, target + x * out, [*at, x], 1)

    def _offset(self, base: Expr, at: list[Expr], steps: tuple[int, ...]) -> Expr:
        return self.pen.register(
            sum((a * s for a, s in zip(at, steps, strict=False) if s), base)
        )
