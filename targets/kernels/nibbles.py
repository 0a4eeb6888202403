"""The kernel for weights of 4 bits in blocks: they become floats in registers.

Made for few positions, where memory is the limit. Lanes are output channels. A word of a lane
holds eight neighbours of its row; masked, the j-th is a whole number times 16^j, which one
conversion makes a float and activations that were multiplied by 16^-j before make right. The
zero point comes off a block's sum: activations above 1e36 may overflow before it does, and an
infinite one makes all results NaN.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Strides, cut
from tilewright.targets.kernels.pen import Expr, Isa, Local, Pen
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.kernels.vector_math import number

_SOURCE, _WEIGHTS = range(2)
_ARGUMENTS = ("float32", "weights")
_FIRST = len(_ARGUMENTS)  # of the tail's arguments
_NIBBLES = 8  # of a word
_LINE = 16  # words of a cache line
_AHEAD = 1024  # words that weights are fetched ahead


@dataclass(frozen=True)
class NibbleKernel:
    """Y = tail(W X) for a matrix of (outputs, blocks * block) 4-bit values.

    Tiles of `vectors` lanes of channels follow one another, the last of them moved back; in
    each lie, block by block, the scales, the scales times minus the zero points where there are
    `zeros` other than 8, and the words of eight columns. With `halves`, a word holds the scales
    (or zeros) of two vectors as half floats. There are `images` x `height` x `width` positions.
    """

    outputs: int
    blocks: int
    block: int
    vectors: int
    halves: bool
    zeros: bool
    images: int
    height: int
    width: int
    source: Strides
    tail: Tail
    parallel: bool

    name = "nibbles"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*_ARGUMENTS, *self.tail.kinds())

    @property
    def _pitch(self) -> int:
        return self.blocks * self.block

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        lanes = pen.isa.lanes
        rows = self.vectors * lanes
        tiles = -(-self.outputs // rows)
        positions = self.images * self.height * self.width
        with pen.shared(self.parallel) as share:
            scaled = pen.local(positions * self._pitch)
            totals = pen.local(positions * self.blocks)
            self._prepare(pen, scaled, totals)
            with share.pieces(tiles) as (low, high), pen.serial(high - low) as i:
                tile = pen.register(low + i)
                for nest in cut(1, positions, 1, positions_beside(pen.isa, self.vectors)):
                    with nest.walk(pen) as (_, first):
                        found = self._sums(
                            pen, scaled, totals, tile, first, len(nest.places), lanes
                        )
                        n = pen.register(tirx.min(tile * rows, self.outputs - rows))
                        for m, row in enumerate(found):
                            at = pen.register(first + nest.places[m][1])
                            b, y = at // (self.height * self.width), at // self.width
                            place = (b, n, y % self.height, at % self.width)
                            self._store(pen, place, row, lanes)

    def _store(
        self, pen: Pen, place: tuple[Expr, Expr, Expr, Expr], row: list[Expr], lanes: int
    ) -> None:
        b, n, y, x = place
        for v, value in enumerate(row):
            self.tail.store(pen, _FIRST, value, (b, n + v * lanes, y, x), lanes, along="n")

    def _prepare(self, pen: Pen, scaled: Local, totals: Local) -> None:
        """Multiply activations by what undoes their nibble's place, and sum them by block.

        Every thread does it for itself: that takes less than another launch would.
        """
        lanes = min(pen.isa.lanes, self.block)
        places = [-min(j % _NIBBLES, _NIBBLES - 2) for j in range(lanes)]
        undo = pen.register(
            T.Shuffle(
                [tirx.const(16.0**place, "float32") for place in places], list(range(lanes))
            )
        )
        with (
            pen.serial(self.images) as b,
            pen.serial(self.height) as y,
            pen.serial(self.width) as x,
            pen.serial(self.blocks) as block,
        ):
            position = (b * self.height + y) * self.width + x
            base = pen.register(self.source.at(b, 0, y, x) + block * self.block * self.source.n)
            target = pen.register(position * self._pitch + block * self.block)
            total = pen.local(lanes)
            total.store(0, number(0.0, "float32", lanes), lanes)
            with pen.serial(self.block // lanes) as part:
                step = self.source.n
                at = base + part * lanes * step
                value = pen.register(pen.load(_SOURCE, at, lanes, stride=step))
                total.store(0, total.load(0, lanes) + value, lanes)
                scaled.store(target + part * lanes, value * undo, lanes)
            halves = total.load(0, lanes)
            half = lanes // 2
            while half:
                turned = [(i + half) % lanes for i in range(lanes)]
                halves = pen.register(halves + T.Shuffle([halves], turned))
                half //= 2
            totals.store(position * self.blocks + block, T.Shuffle([halves], [0]))

    def _sums(
        self,
        pen: Pen,
        scaled: Local,
        totals: Local,
        tile: Expr,
        first: Expr,
        positions: int,
        lanes: int,
    ) -> list[list[Expr]]:
        """Return the results of some positions for a tile's channels."""
        rows = self.vectors * lanes
        words = self.block // _NIBBLES
        header = (rows // 2 if self.halves else rows) * (1 + self.zeros)
        each = header + rows * words
        results = _cells(pen, positions, self.vectors, lanes)
        with pen.serial(self.blocks) as block:
            at = pen.register((tile * self.blocks + block) * each)
            sums = _cells(pen, positions, self.vectors, lanes)
            start = pen.register(first * self._pitch + block * self.block)
            with pen.serial(words) as word:
                here = pen.register(at + header + word * rows)
                for line in range(0, rows, _LINE):
                    pen.prefetch(_WEIGHTS, here + (_AHEAD + line))
                self._word(pen, scaled, sums, here, start + word * _NIBBLES, lanes)
            for v in range(self.vectors):
                scale = self._scale(pen, at, v, lanes)
                zero = pen.register(scale * number(-8.0, "float32", lanes))
                if self.zeros:
                    zero = self._scale(pen, at + header // 2, v, lanes)
                for m in range(positions):
                    total = totals.load((first + m) * self.blocks + block, lanes, stride=0)
                    cell = results[m][v]
                    value = cell.load(0, lanes) + zero * total
                    cell.store(0, value + scale * sums[m][v].load(0, lanes), lanes)
        return [[pen.register(cell.load(0, lanes)) for cell in row] for row in results]

    def _scale(self, pen: Pen, at: Expr, v: int, lanes: int) -> Expr:
        """Return a vector of the scales, or of what lies like them."""
        if not self.halves:
            return pen.register(pen.load(_WEIGHTS, at + v * lanes, lanes))
        both = tirx.reinterpret(
            f"float16x{2 * lanes}", pen.load(_WEIGHTS, at + v // 2 * lanes, lanes)
        )
        half = T.Shuffle([both], list(range(v % 2, 2 * lanes, 2)))
        return pen.register(tirx.Cast(f"float32x{lanes}", half))

    def _word(
        self,
        pen: Pen,
        scaled: Local,
        sums: list[list[Local]],
        here: Expr,
        start: Expr,
        lanes: int,
    ) -> None:
        """Multiply the eight columns of a word."""
        loaded = [
            pen.register(
                tirx.reinterpret(f"int32x{lanes}", pen.load(_WEIGHTS, here + v * lanes, lanes))
            )
            for v in range(self.vectors)
        ]
        for j in range(_NIBBLES):
            # The last nibble reaches the sign: it moves to its neighbour's place.
            place = min(j, _NIBBLES - 2)
            if j > place:
                four = number(4, "int32", lanes)
                loaded = [pen.register(tirx.shift_right(word, four)) for word in loaded]
            mask = number(15 << (4 * place), "int32", lanes)
            floats = [
                pen.register(tirx.Cast(f"float32x{lanes}", tirx.bitwise_and(word, mask)))
                for word in loaded
            ]
            for m, row in enumerate(sums):
                x = scaled.load(start + (m * self._pitch + j), lanes, stride=0)
                for cell, value in zip(row, floats, strict=True):
                    cell.store(0, cell.load(0, lanes) + x * value, lanes)


def positions_beside(isa: Isa, vectors: int) -> int:
    """Return how many positions' sums fit into registers: two a vector of channels."""
    return max(1, (isa.registers - 2 * vectors) // (2 * vectors))


def _cells(pen: Pen, rows: int, columns: int, lanes: int) -> list[list[Local]]:
    cells = [[pen.local(lanes) for _ in range(columns)] for _ in range(rows)]
    for row in cells:
        for cell in row:
            cell.store(0, number(0.0, "float32", lanes), lanes)
    return cells
