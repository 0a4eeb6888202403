"""Kernels that reduce rows: sums and means, softmax, layer normalization."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from tvm import tirx

from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.pen import Expr, Isa, Local, Pen, Share
from tilewright.targets.kernels.rows import RowShape, Sweep, each_row, pieces_of
from tilewright.targets.kernels.vector_math import Math, number

_LARGEST = math.inf
_BLOCK = 128  # rows whose exponentials are added up by themselves
_LEAST = -3.4028234663852886e38  # of the finite float32


@dataclass(frozen=True)
class ReduceKernel:
    """ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceL2 or ReduceSumSquare, then a chain.

    Arguments: source, target, operands of the chain, which walk the kept axes by `operands`.
    """

    op: str
    rows: RowShape
    chain: Chain = field(default_factory=Chain)
    operands: tuple[tuple[int, ...], ...] = ()
    operand_dtypes: tuple[str, ...] = ()
    target_dtype: str = "float32"

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        return self.op.lower()

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", self.target_dtype, *self.operand_dtypes)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        each_row(pen, self.rows, lambda sweep, at: self._row(pen, sweep, at))

    def _row(self, pen: Pen, sweep: Sweep, at: list[Expr]) -> None:
        kind = self.op.removeprefix("Reduce")
        start, extreme = _EXTREMES.get(kind, (0.0, ""))

        def combine(a: Expr, b: Expr) -> Expr:
            return sweep.here.extreme(extreme, a, b) if extreme else a + b

        squared = kind in ("L2", "SumSquare")
        (total,) = sweep.fold(
            (start,), lambda sums, x: (combine(sums[0], x * x if squared else x),), (combine,)
        )
        if kind == "Mean":
            total = total * sweep.math.f(1.0 / self.rows.count)
        if kind == "L2":
            total = sweep.math.llvm("sqrt", total)

        def operand(i: int) -> Expr:
            strides = self.operands[i]
            place = sum((a * s for a, s in zip(at, strides, strict=True) if s), 0)
            return pen.load(2 + i, place, sweep.width, stride=strides[-1] if at else 0)

        (value,) = run_chain(pen, self.chain, pen.register(total), operand, sweep.width)
        pen.store(1, sweep.target_base, value, sweep.width)


@dataclass(frozen=True)
class SoftmaxKernel:
    """Softmax of rows. Arguments: source, target."""

    rows: RowShape

    name = "softmax"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", "float32")

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        each_row(pen, self.rows, self._row)

    def _row(self, sweep: Sweep, at: list[Expr]) -> None:
        top = _largest(sweep)

        def exponentials(sums: tuple[Expr, ...], x: Expr) -> tuple[Expr, ...]:
            e = sweep.here.exp(x - sweep.spread(top))
            sweep.store_current(e)
            return (sums[0] + e,)

        (total,) = sweep.fold((0.0,), exponentials, (_add,))
        scale = sweep.pen.register(sweep.math.f(1.0) / total)
        sweep.each(lambda x, place, width: [x * sweep.spread(scale)], again=True)


@dataclass(frozen=True)
class SplitSoftmaxKernel:
    """Softmax of a few long rows that lie side by side: threads share what is within the rows.

    Each thread takes a part of every row: its largest value, and exponentials relative to that.
    What the parts have in common is known when all are done; then each scales its own part.
    Arguments: source, target.
    """

    rows: RowShape

    name = "split_softmax"
    _MOST_SHARES: ClassVar[int] = 64

    @classmethod
    def fits(cls, rows: RowShape, isa: Isa) -> bool:
        """Say whether rows are too few to be shared out, and long enough to be split."""
        few = len(rows.kept) == 1 and rows.kept[0] <= 4 * isa.lanes
        return rows.vertical and few and len(rows.reduced) == 1 and rows.count >= 2048

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", "float32")

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        (lanes,), count = self.rows.kept, self.rows.count
        pieces = [
            (first + i * width, width)
            for first, vectors, width in pieces_of(lanes, pen.isa)
            for i in range(vectors)
        ]
        tops = pen.local(self._MOST_SHARES * lanes)
        totals = pen.local(self._MOST_SHARES * lanes)
        with pen.parts(self._MOST_SHARES) as share:
            low, high = share.of(count)
            rows = pen.register(high - low)
            self._exponentials(pen, pieces, low, rows, tops, totals, share.index * lanes)
        with pen.parts(self._MOST_SHARES) as share:
            low, high = share.of(count)
            rows = pen.register(high - low)
            factors = [
                self._factor(pen, first, width, tops, totals, share) for first, width in pieces
            ]
            with pen.serial(rows) as k:
                at = pen.register((low + k) * self.rows.target[1])
                for (first, width), factor in zip(pieces, factors, strict=True):
                    pen.store(1, at + first, pen.load(1, at + first, width) * factor, width)

    def _exponentials(
        self,
        pen: Pen,
        pieces: list[tuple[int, int]],
        low: Expr,
        rows: Expr,
        tops: Local,
        totals: Local,
        place: Expr,
    ) -> None:
        """Write exponentials relative to the part's largest values; note these and the sums."""
        source, target = self.rows.source[1], self.rows.target[1]
        largest = [pen.local(width) for _, width in pieces]
        sums = [pen.local(width) for _, width in pieces]
        for (_, width), top, total in zip(pieces, largest, sums, strict=True):
            # Finite: a part may hold nothing but minus infinity, where others do not.
            top.store(0, number(_LEAST, "float32", width), width)
            total.store(0, number(0.0, "float32", width), width)
        with pen.serial(rows) as k:
            at = pen.register((low + k) * source)
            for (first, width), top in zip(pieces, largest, strict=True):
                x = pen.load(0, at + first, width)
                top.store(0, tirx.max(top.load(0, width), x), width)
        # In blocks: added up one by one, thousands of them would lose the last digits.
        parts = [pen.local(width) for _, width in pieces]
        with pen.serial((rows + (_BLOCK - 1)) // _BLOCK) as block:
            for (_, width), part in zip(pieces, parts, strict=True):
                part.store(0, number(0.0, "float32", width), width)
            begin = pen.register(block * _BLOCK)
            with pen.serial(tirx.min(rows - begin, _BLOCK)) as i:
                k = pen.register(low + begin + i)
                at, to = pen.register(k * source), pen.register(k * target)
                for (first, width), top, part in zip(pieces, largest, parts, strict=True):
                    x = pen.load(0, at + first, width) - top.load(0, width)
                    e = pen.register(Math(pen, width, {}).exp(pen.register(x)))
                    pen.store(1, to + first, e, width)
                    part.store(0, part.load(0, width) + e, width)
            for (_, width), part, total in zip(pieces, parts, sums, strict=True):
                total.store(0, total.load(0, width) + part.load(0, width), width)
        for (first, width), top, total in zip(pieces, largest, sums, strict=True):
            tops.store(place + first, top.load(0, width), width)
            totals.store(place + first, total.load(0, width), width)

    def _factor(
        self,
        pen: Pen,
        first: int,
        width: int,
        tops: Local,
        totals: Local,
        share: Share,
    ) -> Expr:
        """Return what a part's exponentials are multiplied by."""
        lanes, m = self.rows.kept[0], Math(pen, width, {})
        top, total = pen.local(width), pen.local(width)
        top.store(0, m.f(_LEAST), width)
        total.store(0, m.f(0.0), width)
        with pen.serial(share.shares) as s:
            part = tops.load(s * lanes + first, width)
            top.store(0, tirx.max(top.load(0, width), part), width)
        with pen.serial(share.shares) as s:
            part = pen.register(tops.load(s * lanes + first, width) - top.load(0, width))
            grown = totals.load(s * lanes + first, width) * m.exp(part)
            total.store(0, total.load(0, width) + grown, width)
        own = pen.register(tops.load(share.index * lanes + first, width) - top.load(0, width))
        return pen.register(m.exp(own) / total.load(0, width))


@dataclass(frozen=True)
class LogSoftmaxKernel:
    """Logarithm of the softmax of rows. Arguments: source, target."""

    rows: RowShape

    name = "log_softmax"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", "float32")

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        each_row(pen, self.rows, self._row)

    def _row(self, sweep: Sweep, at: list[Expr]) -> None:
        top = _largest(sweep)
        (total,) = sweep.fold(
            (0.0,), lambda s, x: (s[0] + sweep.here.exp(x - sweep.spread(top)),), (_add,)
        )
        shift = sweep.pen.register(top + sweep.math.log(total))
        sweep.each(lambda x, place, width: [x - sweep.spread(shift)])


@dataclass(frozen=True)
class LayerNormKernel:
    """LayerNormalization of rows, ending in a chain without operands.

    Arguments: source, the chain's outputs, which lie alike, scale and, with `has_bias`, bias,
    which walk the reduced axes by `parameters`.
    """

    rows: RowShape
    epsilon: float
    has_bias: bool
    parameters: tuple[int, ...]
    chain: Chain
    output_dtypes: tuple[str, ...]

    name = "layer_norm"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", *self.output_dtypes, "weights", *("weights",) * self.has_bias)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        each_row(pen, self.rows, self._row)

    def _row(self, sweep: Sweep, at: list[Expr]) -> None:
        m = sweep.math
        # Sums of x - x[0]: the variance of a row far from zero does not cancel.
        shift = sweep.first()

        def moments(sums: tuple[Expr, ...], x: Expr) -> tuple[Expr, ...]:
            d = sweep.pen.register(x - sweep.spread(shift))
            return sums[0] + d, sums[1] + d * d

        total, squares = sweep.fold((0.0, 0.0), moments, (_add, _add))
        mean = sweep.pen.register(total * m.f(1.0 / self.rows.count))
        square = squares * m.f(1.0 / self.rows.count)
        variance = sweep.pen.register(tirx.max(square - mean * mean, m.f(0.0)))
        scale = sweep.pen.register(m.f(1.0) / m.llvm("sqrt", variance + m.f(self.epsilon)))
        center = sweep.pen.register(mean + shift)

        first = 1 + len(self.output_dtypes)

        def normalized(x: Expr, place: list[Expr], width: int) -> list[Expr]:
            walk = zip(place, self.parameters, strict=True)
            at = sum((a * s for a, s in walk if s), 0)
            step = 0 if self.rows.vertical else self.parameters[-1]
            y = (x - sweep.spread(center)) * sweep.spread(scale)
            y = y * sweep.pen.load(first, at, width, stride=step)
            if self.has_bias:
                y = y + sweep.pen.load(first + 1, at, width, stride=step)
            return run_chain(sweep.pen, self.chain, sweep.pen.register(y), _no_operand, width)

        sweep.each(normalized)


def _no_operand(index: int) -> Expr:
    raise AssertionError(f"operand {index} of a chain that has none")


def _largest(sweep: Sweep) -> Expr:
    (top,) = sweep.fold((-_LARGEST,), lambda s, x: (tirx.max(s[0], x),), (tirx.max,))
    return top


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


# Where a fold starts, and what it takes, where that is not a sum from zero.
_EXTREMES = {"Max": (-_LARGEST, "maximum"), "Min": (_LARGEST, "minimum")}
