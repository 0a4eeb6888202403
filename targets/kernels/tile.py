"""The tile kernel: matrix times activations, running only the tiles that are not zero.

One outer product at the core: in every step some scalars meet some vectors, all of it in
registers. What the lanes hold decides who is who:

    lanes = positions   vectors are activations, scalars are weights of `rows` output channels
    lanes = channels    vectors are weights, scalars are activations of some positions

A step reads its activation at an offset from a list, so a convolution, a pointwise layer and a
matrix product are the same kernel, and a dense layer is the one whose lists leave nothing out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from tilewright.targets.kernels.blocks import Nest, Strides, cut, each_row
from tilewright.targets.kernels.pen import Expr, Isa, Pen, Share
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.kernels.vector_math import number

# Arguments that every tile kernel takes first; the tail's follow.
SOURCE, VALUES, OFFSETS, TILES, ROWS, GROUPS = range(6)
ARGUMENTS = ("float32", "weights", "indices", "indices", "indices", "indices")
FIRST = len(ARGUMENTS)  # of the tail's arguments
# A row of the tile table: where its values, offsets and rows start, and its steps.
TABLE_COLUMNS = 4

_LINE = 16  # float32 elements of a cache line
_AHEAD = 512  # elements that weights are fetched ahead: longer than memory takes to answer
# Columns that activations are fetched ahead, where no pattern is that hardware would foresee.
# Offsets are read from so many behind the last.
COLUMNS_AHEAD = 24
PARALLEL_MACS = 100_000  # below, the launch of the thread pool costs more than it saves

# Computes a block of positions for a tile: (image, row, column, tile).
Block = Callable[[Expr, Expr, Expr, Expr], None]


@dataclass(frozen=True)
class TileKernel:
    """Y = tail(W X) for one layer.

    `heights` lists the tile heights that occur; how many tiles of each there are, and where
    they start in the tile table, is read at run time, so layers of one shape share the kernel
    whatever their zeros. There are `images` x `height` x `width` positions. `source` walks the
    activations (its `n` is unused: offsets come from the list). `weights` may be "int8" where
    lanes are channels: words of four, which become floats in registers; their scales belong to
    the tail. `together` tiles stay in a cache while all positions stream past, from beyond
    the second-level cache where they are `streamed`. Where the activations of a block are
    `far`, beyond the first-level cache, they are fetched ahead.
    """

    lanes: str
    heights: tuple[int, ...]
    images: int
    height: int
    width: int
    source: Strides
    tail: Tail
    parallel: bool
    split_positions: bool
    together: int
    weights: str = "float32"
    far: bool = False
    streamed: bool = False

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        return f"tile_{self.lanes}"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*ARGUMENTS, *self.tail.kinds())

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        share_out = self._share_positions if self.split_positions else self._share_tiles
        with pen.shared(self.parallel) as share:
            for group, rows in enumerate(self.heights):
                share_out(pen, share, self.blocks(pen, rows), *self.group(pen, group))

    def blocks(self, pen: Pen, rows: int) -> list[tuple[Nest, Block]]:
        """Cut positions into nests for tiles of a height, each with what computes a block."""
        if self.lanes == "positions":
            lanes = pen.isa.width_for(self.width)
            nests = cut(self.height, self.width, lanes, vectors_beside(pen.isa, rows))
            return [
                (nest, partial(self._positions_block, pen, rows, lanes, nest)) for nest in nests
            ]
        lanes = pen.isa.width_for(rows)
        vectors = -(-rows // lanes)
        most = max(1, (pen.isa.registers - 1 - vectors) // vectors)
        nests = cut(self.height, self.width, 1, min(most, 14))
        return [
            (nest, partial(self._channels_block, pen, vectors, lanes, nest)) for nest in nests
        ]

    def _share_positions(
        self,
        pen: Pen,
        share: Share,
        blocks: Sequence[tuple[Nest, Block]],
        first: Expr,
        count: Expr,
    ) -> None:
        for nest, block in blocks:
            each = nest.rows * nest.columns
            with share.pieces(self.images * each) as (low, high), pen.serial(high - low) as i:
                flat = pen.register(low + i)
                b = pen.opaque(flat // each)
                y = pen.opaque(nest.y0 + flat // nest.columns % nest.rows * nest.y_step)
                x = pen.opaque(nest.x0 + flat % nest.columns * nest.x_step)
                with pen.serial(count) as tile:
                    block(b, y, x, first + tile)

    def _share_tiles(
        self,
        pen: Pen,
        share: Share,
        blocks: Sequence[tuple[Nest, Block]],
        first: Expr,
        count: Expr,
    ) -> None:
        with share.pieces(count, self.together, coarse=self.streamed) as (low, high):
            for nest, block in blocks:
                with (
                    pen.serial(self.images) as b,
                    nest.walk(pen) as (y, x),
                    pen.serial(high - low) as tile,
                ):
                    block(b, y, x, first + low + tile)

    def group(self, pen: Pen, group: int) -> tuple[Expr, Expr]:
        """Return a group's first tile and its number of tiles."""
        first, count = (pen.register(pen.load(GROUPS, 2 * group + i)) for i in range(2))
        return first, count

    def row(self, pen: Pen, tile: Expr, r: Expr) -> Expr:
        """Return the output channel of a row of a tile."""
        return pen.load(ROWS, pen.load(TILES, tile * TABLE_COLUMNS + 2) + r)

    def _positions_block(
        self,
        pen: Pen,
        height: int,
        lanes: int,
        nest: Nest,
        b: Expr,
        y: Expr,
        x: Expr,
        tile: Expr,
    ) -> None:
        with self.rows_of_block(pen, height, lanes, nest, b, y, x, tile) as rows:
            _, n, cells = rows
            for row, column, value in cells:
                self.tail.store(pen, FIRST, value, (b, n, row, column), lanes)

    @contextmanager
    def rows_of_block(
        self,
        pen: Pen,
        height: int,
        lanes: int,
        nest: Nest,
        b: Expr,
        y: Expr,
        x: Expr,
        tile: Expr,
    ) -> Iterator[tuple[Expr, Expr, list[tuple[Expr, Expr, Expr]]]]:
        """Compute a block of positions for the rows of a tile, and loop over these.

        The block is `nest`'s at row y, column x. Gives the row's number in the tile, its output
        channel, and the row, column and value of each vector.
        """
        values, offsets, rows, steps = _tile_table(pen, tile)
        base = pen.register(tirx.const(0, "int32") + self.source.at(b, 0, y, x))
        places = [self.source.at(0, 0, dy, dx) for dy, dx in nest.places]

        def vectors(p: Expr) -> list[Expr]:
            if self.far:
                later = pen.register(base + pen.load(OFFSETS, offsets + p + COLUMNS_AHEAD))
                for place in places:
                    pen.prefetch(SOURCE, later + place)
            at = pen.register(base + pen.load(OFFSETS, offsets + p))
            return [pen.load(SOURCE, at + place, lanes) for place in places]

        def scalars(p: Expr) -> list[Expr]:
            return pen.elements(VALUES, values + p * height, height, lanes)

        def ahead(p: Expr, count: int) -> None:
            for line in range(0, count * height, _LINE):
                pen.prefetch(VALUES, values + p * height + (_AHEAD + line))
            pen.prefetch(OFFSETS, offsets + p + _AHEAD // height)

        together = max(1, _LINE // height)
        sums = outer_product(
            pen, steps, scalars, vectors, height, len(places), lanes, ahead, together
        )
        with each_row(pen, sums, lanes) as (r, values_of_row):
            cells = zip(nest.places, values_of_row, strict=True)
            n = pen.register(pen.load(ROWS, rows + r))
            yield r, n, [(y + dy, x + dx, value) for (dy, dx), value in cells]

    def _channels_block(
        self,
        pen: Pen,
        vectors: int,
        lanes: int,
        nest: Nest,
        b: Expr,
        y: Expr,
        x: Expr,
        tile: Expr,
    ) -> None:
        values, offsets, rows, steps = _tile_table(pen, tile)
        base = pen.register(tirx.const(0, "int32") + self.source.at(b, 0, y, x))
        places = [self.source.at(0, 0, dy, dx) for dy, dx in nest.places]

        words = lanes // 4 if self.weights == "int8" else lanes

        def weights(p: Expr) -> list[Expr]:
            at = values + p * (vectors * words)
            loaded = [pen.load(VALUES, at + v * words, words) for v in range(vectors)]
            if words == lanes:
                return loaded
            small = (tirx.reinterpret(f"int8x{lanes}", word) for word in loaded)
            return [pen.register(tirx.Cast(f"float32x{lanes}", value)) for value in small]

        def activations(p: Expr) -> list[Expr]:
            at = pen.register(base + pen.load(OFFSETS, offsets + p))
            return [pen.load(SOURCE, at + place, lanes, stride=0) for place in places]

        def ahead(p: Expr, count: int) -> None:
            for line in range(0, count * vectors * words, _LINE):
                pen.prefetch(VALUES, values + p * (vectors * words) + (_AHEAD + line))

        sums = outer_product(
            pen, steps, activations, weights, len(places), vectors, lanes, ahead
        )
        with each_row(pen, sums, lanes) as (m, values_of_place):
            dy, dx = nest.place(m)
            for v, value in enumerate(values_of_place):
                n = pen.register(pen.load(ROWS, rows + v))
                place = (b, n, y + dy, x + dx)
                self.tail.store(pen, FIRST, value, place, lanes, along="n")


def outer_product(
    pen: Pen,
    steps: Expr,
    scalars: Callable[[Expr], Sequence[Expr]],
    vectors: Callable[[Expr], Sequence[Expr]],
    rows: int,
    columns: int,
    lanes: int,
    ahead: Callable[[Expr, int], None] | None = None,
    together: int = 1,
) -> list[list[Expr]]:
    """Sum over p < steps of scalars(p)[r] * vectors(p)[v], held in registers.

    With few accumulators, several steps run at a time into sums of their own: a chain of
    dependent multiply-adds would otherwise wait four cycles for each. Before every `together`
    steps or more, `ahead` may fetch what later ones read: it gets p and how many steps follow.
    """
    ways = max(1, min(4, 8 // (rows * columns)))
    unrolled = max(ways, together)
    cells = [
        [[pen.local(lanes) for _ in range(columns)] for _ in range(rows)] for _ in range(ways)
    ]
    for way in cells:
        for row in way:
            for cell in row:
                cell.store(0, number(0.0, "float32", lanes), lanes)

    def step(p: Expr, way: list[list[Expr]]) -> None:
        left, right = scalars(p), vectors(p)
        for r in range(rows):
            for v in range(columns):
                cell = way[r][v]
                cell.store(0, cell.load(0, lanes) + left[r] * right[v], lanes)

    with pen.serial(steps // unrolled) as turn:
        first = pen.register(turn * unrolled)
        if ahead is not None:
            ahead(first, unrolled)
        for w in range(unrolled):
            step(first + w, cells[w % ways])
    if unrolled > 1:
        with pen.serial(steps % unrolled) as rest:
            step(steps // unrolled * unrolled + rest, cells[0])
    return [
        [
            sum((way[r][v].load(0, lanes) for way in cells[1:]), cells[0][r][v].load(0, lanes))
            for v in range(columns)
        ]
        for r in range(rows)
    ]


def vectors_beside(isa: Isa, rows: int) -> int:
    """Return how many vectors of activations fit beside `rows` accumulators each.

    rows * v sums, v activations and one weight must stay in registers.
    """
    return max(1, min(6, (isa.registers - 1) // (rows + 1)))


def _tile_table(pen: Pen, tile: Expr) -> list[Expr]:
    return [pen.register(pen.load(TILES, tile * TABLE_COLUMNS + c)) for c in range(4)]
