"""Kernels that reduce rows: sums and means, softmax, layer normalization."""

import math
from dataclasses import dataclass, field

from tvm import tirx

from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.pen import Expr, Pen
from tilewright.targets.kernels.rows import RowShape, Sweep, each_row

_LARGEST = math.inf


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
