"""Attention in one kernel: scores, softmax and values, without a score matrix in memory.

Lanes are queries. A block of them keeps its scores, one row a key, in scratch memory that stays
in the first-level caches; softmax then runs down the rows, lane by lane, and nothing is ever
added up across lanes. (Dao et al., "FlashAttention", 2022, has the idea of the block; all of a
block's scores fit here, so none are rescaled.)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx

from tilewright.targets.kernels.blocks import Nest, cut, each_row
from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.map import indices_of
from tilewright.targets.kernels.pen import Expr, Local, Pen
from tilewright.targets.kernels.tile import outer_product
from tilewright.targets.kernels.vector_math import Math, number

_PARALLEL_MACS = 100_000
# Vectors of queries in a block.
_VECTORS = 2

# Arguments that come first; operands of the scores, then of the result, and outputs follow.
QUERIES, KEYS, VALUES = range(3)


@dataclass(frozen=True)
class Walk:
    """The memory operands of a chain: strides over (batch axes..., row, query), and dtypes."""

    strides: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class AttentionKernel:
    """O[batch, d, i] = chain(sum_j V[batch, d, j] softmax_j(S[batch, j, i])).

    S[batch, j, i] = score_chain(sum_c K[batch, j, c] Q[batch, i, c]), over `keys` j, `queries`
    i, `depth` c and `width` d. `query`, `key` and `value` are strides over (batch axes..., i,
    c), (..., j, c) and (..., d, j); scores walk their operands by (..., j, i), the result its
    operands and outputs by (..., d, i).
    """

    batch: tuple[int, ...]
    queries: int
    keys: int
    depth: int
    width: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    score_chain: Chain
    scores: Walk
    chain: Chain
    operands: Walk
    outputs: Walk

    name = "attention"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        fixed = ("float32", "float32", "float32")
        return (*fixed, *self.scores.dtypes, *self.operands.dtypes, *self.outputs.dtypes)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        batches = math.prod(self.batch)
        macs = batches * self.queries * self.keys * (self.depth + self.width)
        lanes = pen.isa.width_for(self.queries)
        for nest in cut(1, self.queries, lanes, _VECTORS):
            with pen.parallel(batches * nest.columns, macs >= _PARALLEL_MACS) as flat:
                at = indices_of(pen, flat // nest.columns, list(self.batch))
                first = pen.register(nest.x0 + flat % nest.columns * nest.x_step)
                self._block(_Block(pen, at, first, nest, lanes))

    def _block(self, block: "_Block") -> None:
        scores = block.pen.local(self.keys * block.vectors * block.lanes)
        for height, row in block.rows(self.keys):
            self._scores(block, scores, row, height)
        shares = self._exponentials(block, scores)
        for height, row in block.rows(self.width):
            self._values(block, scores, shares, row, height)

    def _scores(self, block: "_Block", scores: Local, row: Expr, height: int) -> None:
        pen, lanes = block.pen, block.lanes
        query = pen.register(_place([*block.at, block.first], self.query))
        lane, deep = self.query[-2:]

        def queries(c: Expr) -> list[Expr]:
            base = query + c * deep
            return [pen.load(QUERIES, base + x * lane, lanes) for _, x in block.nest.places]

        keys = block.scalars(KEYS, self.key, row, height)
        sums = outer_product(pen, self.depth, keys, queries, height, block.vectors, lanes)
        with each_row(pen, sums, lanes) as (r, found):
            for v, value in enumerate(found):
                operand = block.operands(VALUES + 1, self.scores, row + r, v)
                (score,) = run_chain(pen, self.score_chain, value, operand, lanes)
                scores.store(((row + r) * block.vectors + v) * lanes, score, lanes)

    def _exponentials(self, block: "_Block", scores: Local) -> Local:
        """Replace scores by e^(score - largest); return 1 / (their sum), for each lane."""
        pen, vectors, lanes = block.pen, block.vectors, block.lanes
        m = Math(pen, lanes, {})
        top = [pen.local(lanes) for _ in range(vectors)]
        total = [pen.local(lanes) for _ in range(vectors)]
        for v in range(vectors):
            top[v].store(0, number(-math.inf, "float32", lanes), lanes)
            total[v].store(0, number(0.0, "float32", lanes), lanes)
        with pen.serial(self.keys) as j:
            for v in range(vectors):
                score = scores.load((j * vectors + v) * lanes, lanes)
                top[v].store(0, tirx.max(top[v].load(0, lanes), score), lanes)
        with pen.serial(self.keys) as j:
            for v in range(vectors):
                place = (j * vectors + v) * lanes
                power = m.exp(pen.register(scores.load(place, lanes) - top[v].load(0, lanes)))
                scores.store(place, power, lanes)
                total[v].store(0, total[v].load(0, lanes) + power, lanes)
        shares = pen.local(vectors * lanes)
        for v in range(vectors):
            shares.store(v * lanes, m.f(1.0) / total[v].load(0, lanes), lanes)
        return shares

    def _values(
        self, block: "_Block", scores: Local, shares: Local, row: Expr, height: int
    ) -> None:
        pen, vectors, lanes = block.pen, block.vectors, block.lanes

        def powers(j: Expr) -> list[Expr]:
            return [scores.load((j * vectors + v) * lanes, lanes) for v in range(vectors)]

        values = block.scalars(VALUES, self.value, row, height)
        sums = outer_product(pen, self.keys, values, powers, height, vectors, lanes)
        behind = VALUES + 1 + len(self.scores.dtypes)
        with each_row(pen, sums, lanes) as (r, found):
            for v, raw in enumerate(found):
                result = pen.register(raw * shares.load(v * lanes, lanes))
                operand = block.operands(behind, self.operands, row + r, v)
                stored = run_chain(pen, self.chain, result, operand, lanes)
                place = block.place(row + r, v)
                target = behind + len(self.operands.dtypes)
                for k, (out, strides) in enumerate(
                    zip(stored, self.outputs.strides, strict=True)
                ):
                    at = _place(place, strides)
                    pen.store(target + k, at, out, lanes, stride=strides[-1])


@dataclass(frozen=True)
class _Block:
    """The queries that are computed together: of batch `at`, from query `first` on."""

    pen: Pen
    at: list[Expr]
    first: Expr
    nest: Nest
    lanes: int

    @property
    def vectors(self) -> int:
        return len(self.nest.places)

    def rows(self, count: int) -> Iterator[tuple[int, Expr]]:
        """Loop over rows in blocks of equal height and a rest: (height, first row).

        Two vectors of sums a row take half of the registers.
        """
        most = self.pen.isa.registers // 4
        full, rest = divmod(count, most)
        for height, blocks, start in ((most, full, 0), (rest, 1, full * most)):
            if height and blocks:
                with self.pen.serial(blocks) as index:
                    yield height, self.pen.register(index * height + start)

    def place(self, row: Expr, v: int) -> list[Expr]:
        """Return the indices of a row's vector v: (batch axes..., row, query)."""
        return [*self.at, row, self.first + self.nest.places[v][1]]

    def scalars(
        self, arg: int, strides: tuple[int, ...], row: Expr, height: int
    ) -> Callable[[Expr], list[Expr]]:
        """Return what loads step p of `height` rows, each in all lanes."""
        start = self.pen.register(_place([*self.at, row], strides))
        step, deep = strides[-2:]

        def load(p: Expr) -> list[Expr]:
            base = start + p * deep
            return [
                self.pen.load(arg, base + r * step, self.lanes, stride=0) for r in range(height)
            ]

        return load

    def operands(self, arg: int, walk: Walk, row: Expr, v: int) -> Callable[[int], Expr]:
        """Return what loads a chain's memory operand for a row's vector v."""
        place = self.place(row, v)

        def load(index: int) -> Expr:
            strides = walk.strides[index]
            at = _place(place, strides)
            return self.pen.load(arg + index, at, self.lanes, stride=strides[-1])

        return load


def _place(at: list[Expr], strides: tuple[int, ...]) -> Expr:
    zero = tirx.const(0, "int32")
    return sum((i * s for i, s in zip(at, strides, strict=False) if s), zero)
