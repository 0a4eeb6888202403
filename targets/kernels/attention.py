"""Attention in one kernel: scores, softmax and values, without a score matrix in memory.

Lanes are queries. A block of them keeps its scores, one row a key, in scratch memory that stays
in the first-level caches; softmax then runs down the rows, lane by lane, and nothing is ever
added up across lanes. (Dao et al., "FlashAttention", 2022, has the idea of the block; all of a
block's scores fit here, so none are rescaled.)
"""

import math
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from tilewright.targets.kernels.blocks import Nest, cut
from tilewright.targets.kernels.elementwise import Chain, Math, number, run_chain
from tilewright.targets.kernels.map import indices_of
from tilewright.targets.kernels.pen import Expr, Isa, Local, Pen
from tilewright.targets.kernels.tile import each_result, outer_product

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
                self._block(pen, at, first, nest, lanes)

    def _block(self, pen: Pen, at: list[Expr], first: Expr, nest: Nest, lanes: int) -> None:
        scores = pen.local(self.keys * len(nest.places) * lanes)
        for height, count, start in _heights(self.keys, pen.isa):
            with pen.serial(count) as block:
                row = pen.register(block * height + start)
                self._scores(pen, scores, at, row, first, nest, height, lanes)
        shares = self._exponentials(pen, scores, len(nest.places), lanes)
        for height, count, start in _heights(self.width, pen.isa):
            with pen.serial(count) as block:
                row = pen.register(block * height + start)
                self._values(pen, scores, shares, at, row, first, nest, height, lanes)

    def _scores(
        self,
        pen: Pen,
        scores: Local,
        at: list[Expr],
        row: Expr,
        first: Expr,
        nest: Nest,
        height: int,
        lanes: int,
    ) -> None:
        key = pen.register(_place([*at, row], self.key))
        query = pen.register(_place([*at, first], self.query))
        step, deep_key = self.key[-2:]
        lane, deep_query = self.query[-2:]
        vectors = len(nest.places)

        def keys(c: Expr) -> list[Expr]:
            base = key + c * deep_key
            return [pen.load(KEYS, base + r * step, lanes, stride=0) for r in range(height)]

        def queries(c: Expr) -> list[Expr]:
            base = query + c * deep_query
            return [pen.load(QUERIES, base + x * lane, lanes) for _, x in nest.places]

        sums = outer_product(pen, self.depth, keys, queries, height, vectors, lanes)
        with each_result(pen, sums, lanes) as (r, v, value):
            place = [*at, row + r, first + nest.place(v)[1]]
            operand = partial(_operand, pen, VALUES + 1, self.scores, place, lanes)
            (score,) = run_chain(pen, self.score_chain, value, operand, lanes)
            scores.store(((row + r) * vectors + v) * lanes, score, lanes)

    def _exponentials(self, pen: Pen, scores: Local, vectors: int, lanes: int) -> Local:
        """Replace scores by e^(score - largest); return 1 / (their sum), for each lane."""
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
        self,
        pen: Pen,
        scores: Local,
        shares: Local,
        at: list[Expr],
        row: Expr,
        first: Expr,
        nest: Nest,
        height: int,
        lanes: int,
    ) -> None:
        value = pen.register(_place([*at, row], self.value))
        step, deep = self.value[-2:]
        vectors = len(nest.places)

        def values(j: Expr) -> list[Expr]:
            base = value + j * deep
            return [pen.load(VALUES, base + r * step, lanes, stride=0) for r in range(height)]

        def powers(j: Expr) -> list[Expr]:
            return [scores.load((j * vectors + v) * lanes, lanes) for v in range(vectors)]

        sums = outer_product(pen, self.keys, values, powers, height, vectors, lanes)
        behind = VALUES + 1 + len(self.scores.dtypes)
        with each_result(pen, sums, lanes) as (r, v, raw):
            result = pen.register(raw * shares.load(v * lanes, lanes))
            place = [*at, row + r, first + nest.place(v)[1]]
            operand = partial(_operand, pen, behind, self.operands, place, lanes)
            stored = run_chain(pen, self.chain, result, operand, lanes)
            for k, (out, strides) in enumerate(zip(stored, self.outputs.strides, strict=True)):
                target = behind + len(self.operands.dtypes) + k
                pen.store(target, _place(place, strides), out, lanes, stride=strides[-1])


def _heights(rows: int, isa: Isa) -> list[tuple[int, int, int]]:
    """Cut rows into blocks of equal height and a rest: (height, blocks, first row).

    Two vectors of sums a row take half of the registers.
    """
    most = isa.registers // 4
    full, rest = divmod(rows, most)
    cuts = [(most, full, 0), (rest, 1, full * most)]
    return [(height, count, start) for height, count, start in cuts if height and count]


def _operand(
    pen: Pen, first: int, walk: Walk, place: list[Expr], lanes: int, index: int
) -> Expr:
    strides = walk.strides[index]
    return pen.load(first + index, _place(place, strides), lanes, stride=strides[-1])


def _place(at: list[Expr], strides: tuple[int, ...]) -> Expr:
    zero = tirx.const(0, "int32")
    return sum((i * s for i, s in zip(at, strides, strict=False) if s), zero)
