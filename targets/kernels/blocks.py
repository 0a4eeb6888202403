"""Blocks: how the positions of a layer are cut into what one set of registers computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from tvm import tirx

from tilewright.targets.kernels.pen import Expr, Pen, vector_starts


@dataclass(frozen=True)
class Strides:
    """Where an operand's element for (image b, channel n, row y, column x) lies."""

    b: int
    n: int
    y: int
    x: int

    def at(self, b: Expr, n: Expr, y: Expr, x: Expr) -> Expr:
        """Return an offset in elements; strides of 0 cost nothing."""
        terms = ((self.b, b), (self.n, n), (self.y, y), (self.x, x))
        return sum((value * stride for stride, value in terms if stride), 0)


@dataclass(frozen=True)
class Nest:
    """Loops over equal blocks: `rows` x `columns` of them, `places` vectors in each.

    A block starts at row `y0 + i * y_step`, column `x0 + j * x_step`; a place is a row and a
    column from there.
    """

    rows: int
    columns: int
    y0: int
    x0: int
    y_step: int
    x_step: int
    places: tuple[tuple[int, int], ...]

    def place(self, index: Expr) -> tuple[Expr, Expr]:
        """Return the row and column of a place whose number is known at run time only.

        Places of a row are evenly spaced, but for the last one, which moved back.
        """
        each = sum(dy == 0 for dy, _ in self.places)
        if each == 1:
            return index, tirx.const(0, "int32")
        step, last = self.places[1][1], self.places[each - 1][1]
        column = index if each == len(self.places) else index % each
        row = tirx.const(0, "int32") if each == len(self.places) else index // each
        return row, tirx.min(column * step, last)

    @contextmanager
    def walk(self, pen: Pen) -> Iterator[tuple[Expr, Expr]]:
        """Open the loops and give the block's first row and column."""
        with pen.serial(self.rows) as i, pen.serial(self.columns) as j:
            yield self.y0 + i * self.y_step, self.x0 + j * self.x_step


def cut(height: int, width: int, lanes: int, most: int) -> tuple[Nest, ...]:
    """Cover `height` x `width` positions by blocks of at most `most` vectors of `lanes`.

    Rows shorter than a block share one; longer rows are cut. Blocks are as equal as they come:
    13 vectors with at most 6 a block become 5 + 4 + 4, not 6 + 6 + 1.
    """
    starts = vector_starts(width, lanes)
    if len(starts) <= most:
        group = min(most // len(starts), height)
        nests = [_rows_together(starts, 0, height // group, group)]
        if height % group:
            nests.append(_rows_together(starts, height - height % group, 1, height % group))
        return tuple(nests)
    blocks = -(-len(starts) // most)
    size, larger = divmod(len(starts), blocks)
    nests = []
    first = 0
    for count, each in ((larger, size + 1), (blocks - larger, size)):
        if not count:
            continue
        part = starts[first : first + count * each]
        regular = all(b - a == lanes for a, b in pairwise(part))
        head = count if regular else count - 1
        if head:
            places = tuple((0, s - part[0]) for s in part[:each])
            nests.append(Nest(height, head, 0, part[0], 1, each * lanes, places))
        if head < count:
            tail = part[head * each :]
            places = tuple((0, s - tail[0]) for s in tail)
            nests.append(Nest(height, 1, 0, tail[0], 1, 0, places))
        first += count * each
    return tuple(nests)


@contextmanager
def each_row(pen: Pen, sums: list[list[Expr]], lanes: int) -> Iterator[tuple[Expr, list[Expr]]]:
    """Loop over the rows of a block's sums: what follows is written once a column.

    With the rows unrolled too, chains would make code that takes the compiler seconds a kernel
    and leaves the instruction cache; passing the sums through the first-level cache costs next
    to nothing. With columns in the loop, finding their places would take longer than storing.
    """
    rows, columns = len(sums), len(sums[0])
    if rows == 1:
        yield tirx.const(0, "int32"), [pen.register(value) for value in sums[0]]
        return
    spill = pen.local(rows * columns * lanes)
    for r, row in enumerate(sums):
        for v, value in enumerate(row):
            spill.store((r * columns + v) * lanes, value, lanes)
    with pen.serial(rows) as r:
        yield (
            r,
            [
                pen.register(spill.load((r * columns + v) * lanes, lanes))
                for v in range(columns)
            ],
        )


def _rows_together(starts: list[int], y0: int, blocks: int, group: int) -> Nest:
    places = tuple((dy, s) for dy in range(group) for s in starts)
    return Nest(blocks, 1, y0, 0, group, 0, places)
