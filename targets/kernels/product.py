"""The product of two activations: attention scores, attention values, any batched MatMul."""

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.blocks import Nest, cut, each_row
from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.map import indices_of
from tilewright.targets.kernels.pen import Expr, Pen
from tilewright.targets.kernels.tile import outer_product, vectors_beside
from tilewright.targets.kernels.vector_math import number

_PARALLEL_MACS = 100_000
_ROWS = 4


@dataclass(frozen=True)
class ProductKernel:
    """C[batch, r, v] = chain(sum_k A[batch, r, k] B[batch, k, v]); lanes run along v.

    Strides are rows over (batch axes..., r, k) for `scalars`, (batch axes..., v, k) for
    `vectors`, (batch axes..., r, v) for operands and outputs.
    """

    batch: tuple[int, ...]
    rows: int
    columns: int
    depth: int
    scalars: tuple[int, ...]
    vectors: tuple[int, ...]
    chain: Chain
    operands: tuple[tuple[int, ...], ...]
    operand_dtypes: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[str, ...]

    name = "product"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays: scalars, vectors, operands, outputs."""
        return ("float32", "float32", *self.operand_dtypes, *self.output_dtypes)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        batches = math.prod(self.batch)
        parallel = batches * self.rows * self.columns * self.depth >= _PARALLEL_MACS
        lanes = pen.isa.width_for(self.columns)
        full, rest = divmod(self.rows, _ROWS)
        for height, count, first in ((_ROWS, full, 0), (rest, 1, full * _ROWS)):
            if not height or not count:
                continue
            nests = cut(1, self.columns, lanes, vectors_beside(pen.isa, height))
            with pen.parallel(batches * count, parallel) as flat:
                at = indices_of(pen, flat // count, list(self.batch))
                r = pen.register(first + flat % count * height)
                for nest in nests:
                    with nest.walk(pen) as (_, v):
                        self._block(pen, at, r, v, nest, height, lanes)

    def _block(
        self, pen: Pen, at: list[Expr], r: Expr, v: Expr, nest: Nest, height: int, lanes: int
    ) -> None:
        left = pen.register(_place([*at, r], self.scalars))
        right = pen.register(_place([*at, v], self.vectors))
        row_step, deep_left = self.scalars[-2:]
        lane_step, deep_right = self.vectors[-2:]

        def scalars(p: Expr) -> list[Expr]:
            base = left + p * deep_left
            return [pen.load(0, base + i * row_step, lanes, stride=0) for i in range(height)]

        def vectors(p: Expr) -> list[Expr]:
            base = right + p * deep_right
            return [
                pen.load(1, base + x * lane_step, lanes, stride=lane_step)
                for _, x in nest.places
            ]

        sums = outer_product(pen, self.depth, scalars, vectors, height, len(nest.places), lanes)
        with each_row(pen, sums, lanes) as (i, found):
            for (_, dx), value in zip(nest.places, found, strict=True):
                self._store(pen, [*at, r + i, v + dx], value, lanes)

    def _store(self, pen: Pen, place: list[Expr], value: Expr, lanes: int) -> None:
        def operand(k: int) -> Expr:
            strides = self.operands[k]
            return pen.load(2 + k, _place(place, strides), lanes, stride=strides[-1])

        stored = run_chain(pen, self.chain, value, operand, lanes)
        for k, (out, strides) in enumerate(zip(stored, self.outputs, strict=True)):
            pen.store(2 + len(self.operands) + k, _place(place, strides), out, lanes)


@dataclass(frozen=True)
class DotKernel(ProductKernel):
    """The same product where neither operand has its columns or rows side by side.

    Both have their depth there, and lanes run along it: a vector is loaded from each row of
    each, and the sums of as many columns as there are lanes are folded into one vector.
    """

    name = "dot"

    def write(self, pen: Pen) -> None:
        """Write the function's body. `depth` fills vectors."""
        rows = math.prod(self.batch) * self.rows
        deep = range(0, self.depth, pen.isa.lanes)
        lanes = pen.isa.width_for(self.columns)
        with pen.parallel(rows, rows * self.columns * self.depth >= _PARALLEL_MACS) as flat:
            at = indices_of(pen, flat // self.rows, list(self.batch))
            r = pen.register(flat % self.rows)
            left = pen.register(_place([*at, r], self.scalars))
            row = [pen.register(pen.load(0, left + d, pen.isa.lanes)) for d in deep]
            for nest in cut(1, self.columns, lanes, 1):
                with nest.walk(pen) as (_, v):
                    right = pen.register(_place([*at, v], self.vectors))
                    step = self.vectors[-2]
                    dots = []
                    for i in range(lanes):
                        total = pen.local(pen.isa.lanes)
                        total.store(0, number(0.0, "float32", pen.isa.lanes), pen.isa.lanes)
                        for d, part in zip(deep, row, strict=True):
                            other = pen.load(1, right + (i * step + d), pen.isa.lanes)
                            value = total.load(0, pen.isa.lanes) + part * other
                            total.store(0, value, pen.isa.lanes)
                        dots.append(pen.register(total.load(0, pen.isa.lanes)))
                    self._store(pen, [*at, r, v], _folded(pen, dots), lanes)


def _folded(pen: Pen, vectors: list[Expr]) -> Expr:
    """Return the sums over the lanes of each of 2^n vectors, as one vector."""
    lanes, count = pen.isa.lanes, len(vectors)
    wide = range(0, 2 * lanes, 2)
    for level in range(lanes.bit_length() - 1):
        # Pairs of lanes are added; as long as there are two vectors, one takes both results.
        alone = 1 << level >= count
        pairs = (
            [(x, x) for x in vectors]
            if alone
            else list(zip(vectors[::2], vectors[1::2], strict=True))
        )
        vectors = [
            pen.register(
                T.Shuffle([x, y], list(wide)) + T.Shuffle([x, y], [i + 1 for i in wide])
            )
            for x, y in pairs
        ]
    return vectors[0] if count == lanes else T.Shuffle(vectors, list(range(count)))


def _place(at: list[Expr], strides: tuple[int, ...]) -> Expr:
    zero = tirx.const(0, "int32")
    return sum((i * s for i, s in zip(at, strides, strict=False) if s), zero)
