"""The tile kernel on 8-bit integers: exact sums in int32, then a tail in float32.

Lanes are positions. The instructions multiply a few neighbouring bytes at once and add them up,
so what belongs together must lie together: for each block of positions and each list of columns
the activations are packed first, one word (four inputs of one position) a lane. All rows of a
tile use what was packed, and tiles with the same list, as in a dense layer, pack once.

How words are multiplied is the instruction set's `dot`:

    amx     tiles of 16 rows x 16 words by 16 words x 16 positions (tdpbsud)
    vnni    a vector of words by one word of weights (vpdpbusd)
    words   two inputs a word, as int16 (vpmaddwd), which no sum of theirs can overflow
    sdot    a vector of words by one word of weights, both signed (sdot)
    smull   the same in steps: products of two words as int16 (smull, smlal), added up by pairs
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Nest, Strides, cut
from tilewright.targets.kernels.pen import Expr, Local, Pen
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.kernels.vector_math import number

SOURCE, VALUES, OFFSETS, TILES, ROWS, STARTS, ORDER = range(7)
# A row of the tile table: where its values, offsets and rows start, its words, its row blocks.
TABLE_COLUMNS = 5
_TILE = 16  # rows, words and positions of an AMX tile


@dataclass(frozen=True)
class Dot:
    """How one instruction set multiplies words.

    `depth` inputs make a word; weights of `rows` rows are packed together, and `words` words of
    a list are multiplied at a time, so lists are padded to that many. `places` vectors of
    positions are computed together. Activations are multiplied as `activations`, to which
    others are shifted.
    """

    depth: int
    rows: int
    words: int
    places: int = 4
    activations: str = "uint8"


# The byte of four vectors of 16, one behind the other, that comes in each place of `_mixed`.
INTERLEAVED = np.arange(64, dtype=np.uint8).reshape(4, 16).T.reshape(-1)

DOTS = {
    "amx": Dot(4, 2 * _TILE, _TILE),
    "vnni": Dot(4, 4, 1),
    "words": Dot(2, 4, 1),
    "sdot": Dot(4, 4, 1, activations="int8"),
    # Two sums a position: more places would not fit the registers.
    "smull": Dot(4, 4, 2, places=2, activations="int8"),
}
SHIFT = 128  # between int8 and uint8


@dataclass(frozen=True)
class IntegerKernel:
    """Y = tail(float(W X + start)) for one layer of int8 weights and 8-bit activations.

    `start` (rows,) corrects for the activations' zero point. `most_words` is the length of the
    longest list. Everything else is as in `TileKernel`.
    """

    images: int
    height: int
    width: int
    source: Strides
    source_dtype: str
    most_words: int
    tail: Tail
    parallel: bool

    name = "integer_tile"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        fixed = (self.source_dtype, "weights", *["indices"] * 5)
        return (*fixed, *self.tail.kinds())

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        lanes = pen.isa.lanes
        nests = cut(self.height, self.width, lanes, DOTS[pen.isa.dot].places)
        widest = max(len(nest.places) for nest in nests)
        with pen.shared(self.parallel) as share:
            count = pen.register(pen.load(TILES, 0))
            low, high = share.of(count)
            block = _Block(self, pen, widest)
            with block.multiply.ready():
                for nest in nests:
                    with pen.serial(self.images) as b, nest.walk(pen) as (y, x):
                        block.forget()
                        with pen.serial(high - low) as tile:
                            block.run(nest, b, y, x, low + tile)


class _Multiply(Protocol):
    """How packed activations are multiplied, into sums."""

    def ready(self) -> AbstractContextManager[None]:
        """Prepare the thread's CPU."""
        ...

    def block(self, values: Expr, words: Expr, places: int) -> None:
        """Multiply the rows of weights from `values` on by what is packed."""
        ...


class _Block:
    """What one thread works with: packed activations, sums, and how to multiply."""

    def __init__(self, kernel: IntegerKernel, pen: Pen, places: int) -> None:
        self.kernel = kernel
        self.pen = pen
        self.dot = DOTS[pen.isa.dot]
        self.bytes = pen.isa.lanes * 4  # of a vector of words
        self.packed = pen.local(kernel.most_words * places * self.bytes, "uint8")
        self.held = pen.local(1, "int32")
        self.sums = pen.local(self.dot.rows * places * pen.isa.lanes, "int32")
        kinds: dict[str, Callable[..., _Multiply]] = {"amx": _Amx, "smull": _Halves}
        self.multiply = kinds.get(pen.isa.dot, _Vectors)(pen, self.packed, self.sums)

    def forget(self) -> None:
        """Note that nothing is packed for the block of positions at hand."""
        self.held.store(0, tirx.const(-1, "int32"))

    def run(self, nest: Nest, b: Expr, y: Expr, x: Expr, tile: Expr) -> None:
        """Multiply a tile by a block of positions."""
        pen = self.pen
        values, offsets, rows, words, blocks = (
            pen.register(pen.load(TILES, 1 + tile * TABLE_COLUMNS + c)) for c in range(5)
        )
        places = [self.kernel.source.at(0, 0, dy, dx) for dy, dx in nest.places]
        with T.If(self.held.load(0) != offsets), T.Then():
            self.held.store(0, offsets)
            base = pen.register(tirx.const(0, "int32") + self.kernel.source.at(b, 0, y, x))
            self._pack(base, places, offsets, words)
        each = self.dot.rows
        with pen.serial(blocks) as block:
            at = pen.register(values + block * (words * each))
            self.multiply.block(at, words, len(places))
            with pen.serial(each) as r:
                row = pen.register(rows + block * each + r)
                n = pen.register(pen.load(ROWS, row))
                start = pen.register(pen.load(STARTS, row, pen.isa.lanes, stride=0))
                for v, (dy, dx) in enumerate(nest.places):
                    total = self.sums.load((v * each + r) * pen.isa.lanes, pen.isa.lanes)
                    value = tirx.Cast(f"float32x{pen.isa.lanes}", total + start)
                    place = (b, n, y + dy, x + dx)
                    self.kernel.tail.store(pen, ORDER + 1, value, place, pen.isa.lanes)

    def _pack(self, base: Expr, places: list[Expr], offsets: Expr, words: Expr) -> None:
        """Put `depth` inputs of a position next to each other, for all positions."""
        pen, depth, lanes = self.pen, self.dot.depth, self.pen.isa.lanes
        dtype = self.kernel.source_dtype
        with pen.serial(words) as word:
            starts = [
                pen.register(base + pen.load(OFFSETS, offsets + word * depth + i))
                for i in range(depth)
            ]
            for v, place in enumerate(places):
                parts = [pen.load(SOURCE, start + place, lanes) for start in starts]
                mixed = self._mixed(parts)
                if dtype != self.dot.activations:
                    # The start corrects for the shift.
                    mixed = tirx.reinterpret(f"uint8x{lanes * depth}", mixed) ^ tirx.Broadcast(
                        tirx.const(SHIFT, "uint8"), lanes * depth
                    )
                elif dtype == "int8":
                    mixed = tirx.reinterpret(f"uint8x{lanes * depth}", mixed)
                if depth == 2:
                    mixed = tirx.reinterpret(
                        f"uint8x{lanes * 4}", tirx.Cast(f"int16x{lanes * 2}", mixed)
                    )
                self.packed.store((word * len(places) + v) * self.bytes, mixed, self.bytes)

    def _mixed(self, parts: list[Expr]) -> Expr:
        """Return the parts' bytes in turns: all of lane 0, all of lane 1, ..."""
        pen, lanes, depth = self.pen, self.pen.isa.lanes, len(parts)
        if depth * lanes < 64:
            order = [p * lanes + lane for lane in range(lanes) for p in range(depth)]
            return pen.register(T.Shuffle(parts, order))
        # One permutation of all bytes. LLVM makes eleven instructions of it where it knows the
        # order, so it is read from memory.
        order = tirx.reinterpret("uint8x64", pen.load(ORDER, 0, 16))
        joined = pen.register(T.Shuffle(parts, list(range(64))))
        return pen.register(
            tirx.call_llvm_pure_intrin(
                "uint8x64", "llvm.x86.avx512.permvar.qi.512", joined, order
            )
        )


class _Vectors:
    """Sums in vector registers, four rows by some places at a time."""

    def __init__(self, pen: Pen, packed: Local, sums: Local) -> None:
        self.pen, self.packed, self.sums = pen, packed, sums

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Nothing to prepare."""
        yield

    def block(self, values: Expr, words: Expr, places: int) -> None:
        """Multiply four rows of weights by what is packed."""
        pen, lanes = self.pen, self.pen.isa.lanes
        rows, size = DOTS[pen.isa.dot].rows, lanes * 4
        cells = [[pen.local(lanes, "int32") for _ in range(places)] for _ in range(rows)]
        for row in cells:
            for cell in row:
                cell.store(0, number(0, "int32", lanes), lanes)
        with pen.serial(words) as word:
            vectors = [
                pen.register(self.packed.load((word * places + v) * size, size))
                for v in range(places)
            ]
            weights = pen.elements(VALUES, values + word * rows, rows, lanes)
            for weight, row in zip(map(pen.register, weights), cells, strict=True):
                for vector, cell in zip(vectors, row, strict=True):
                    cell.store(0, self._add(cell.load(0, lanes), vector, weight), lanes)
        for r, row in enumerate(cells):
            for v, cell in enumerate(row):
                self.sums.store((v * rows + r) * lanes, cell.load(0, lanes), lanes)

    def _add(self, total: Expr, vector: Expr, weight: Expr) -> Expr:
        lanes = self.pen.isa.lanes
        if self.pen.isa.dot == "vnni":
            return tirx.call_llvm_pure_intrin(
                f"int32x{lanes}",
                f"llvm.x86.avx512.vpdpbusd.{lanes * 32}",
                total,
                vector,
                tirx.reinterpret(f"int8x{lanes * 4}", weight),
            )
        if self.pen.isa.dot == "sdot":
            return tirx.call_llvm_pure_intrin(
                f"int32x{lanes}",
                "llvm.aarch64.neon.sdot.v4i32.v16i8",
                total,
                tirx.reinterpret("int8x16", vector),
                tirx.reinterpret("int8x16", weight),
            )
        multiply = "avx512.pmaddw.d.512" if lanes == 16 else "avx2.pmadd.wd"
        pairs = (tirx.reinterpret(f"int16x{lanes * 2}", value) for value in (vector, weight))
        return total + tirx.call_llvm_pure_intrin(
            f"int32x{lanes}", f"llvm.x86.{multiply}", *pairs
        )


class _Halves:
    """Sums in two vector registers a row and place, of two inputs' products a lane.

    Two products of int8 fit int16 as long as no weight is -128, which symmetric ones are not.
    """

    def __init__(self, pen: Pen, packed: Local, sums: Local) -> None:
        self.pen, self.packed, self.sums = pen, packed, sums

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Nothing to prepare."""
        yield

    def block(self, values: Expr, words: Expr, places: int) -> None:
        """Multiply four rows of weights by what is packed, two words at a time."""
        pen, rows = self.pen, DOTS["smull"].rows
        cells = [
            [[pen.local(4, "int32") for _ in range(2)] for _ in range(places)]
            for _ in range(rows)
        ]
        for row in cells:
            for cell in row:
                for half in cell:
                    half.store(0, number(0, "int32", 4), 4)
        with pen.serial(words // 2) as step:
            vectors = [
                [
                    self._bytes(self.packed.load((step * 2 + w) * (places * 16) + v * 16, 16))
                    for w in range(2)
                ]
                for v in range(places)
            ]
            for r, row in enumerate(cells):
                weights = [
                    self._bytes(
                        pen.load(VALUES, values + (step * 2 + w) * rows + r, 4, stride=0)
                    )
                    for w in range(2)
                ]
                for pair, cell in zip(vectors, row, strict=True):
                    for half, sum_ in zip((tirx.vectorlow, tirx.vectorhigh), cell, strict=True):
                        products = [
                            self._intrinsic(
                                "int16x8", "smull.v8i16", half("int8x8", a), half("int8x8", b)
                            )
                            for a, b in zip(pair, weights, strict=True)
                        ]
                        pairs = self._intrinsic(
                            "int32x4", "saddlp.v4i32.v8i16", products[0] + products[1]
                        )
                        sum_.store(0, sum_.load(0, 4) + pairs, 4)
        for r, row in enumerate(cells):
            for v, (low, high) in enumerate(row):
                total = self._intrinsic(
                    "int32x4", "addp.v4i32", low.load(0, 4), high.load(0, 4)
                )
                self.sums.store((v * rows + r) * 4, total, 4)

    def _bytes(self, value: Expr) -> Expr:
        return self.pen.register(tirx.reinterpret("int8x16", value))

    def _intrinsic(self, dtype: str, name: str, *operands: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(dtype, f"llvm.aarch64.neon.{name}", *operands)


class _Amx:
    """Sums in AMX tiles: two row halves by two places; a tile of each side a step."""

    _LEFT, _RIGHT = 4, 6  # tile registers: 0 to 3 hold sums

    def __init__(self, pen: Pen, packed: Local, sums: Local) -> None:
        self.pen, self.packed, self.sums = pen, packed, sums

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Tell this thread's CPU that all tiles are 16 rows of 64 bytes; and give them back."""
        layout = self.pen.local(16, "int32")
        # Palette 1; from byte 16 on the bytes of a row as int16, from 48 on the rows as int8.
        words = [1, 0, 0, 0, *[64 | 64 << 16] * 4, 0, 0, 0, 0, *[0x10101010] * 2, 0, 0]
        for i, word in enumerate(words):
            layout.store(i, tirx.const(word, "int32"))
        self._call("ldtilecfg", tirx.address_of(layout.load(0)))
        yield
        self._call("tilerelease")

    def block(self, values: Expr, words: Expr, places: int) -> None:
        """Multiply 32 rows of weights by what is packed."""
        for first in range(0, places, 2):
            pair = range(first, min(first + 2, places))
            for half in range(2):
                for v in pair:
                    self._call("tilezero", self._sum(half, v))
            with self.pen.serial(words // _TILE) as step:
                for half in range(2):
                    at = values + (step * 2 + half) * (_TILE * _TILE)
                    self._load(self._LEFT + half, self.pen.load(VALUES, at), 64)
                for v in pair:
                    at = (step * (_TILE * places) + v) * 64
                    self._load(self._RIGHT + v % 2, self.packed.load(at), places * 64)
                for half in range(2):
                    for v in pair:
                        left, right = self._LEFT + half, self._RIGHT + v % 2
                        self._call("tdpbsud", self._sum(half, v), _i8(left), _i8(right))
            for half in range(2):
                for v in pair:
                    cell = self.sums.load((v * 2 + half) * (_TILE * _TILE))
                    stride = tirx.const(64, "int64")
                    self._call(
                        "tilestored64", self._sum(half, v), tirx.address_of(cell), stride
                    )

    def _load(self, tile: int, start: Expr, stride: int) -> None:
        self._call(
            "tileloadd64", _i8(tile), tirx.address_of(start), tirx.const(stride, "int64")
        )

    def _sum(self, half: int, place: int) -> Expr:
        return _i8(half * 2 + place % 2)

    def _call(self, name: str, *operands: Expr) -> None:
        T.evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))


def _i8(value: int) -> Expr:
    return tirx.const(value, "int8")
