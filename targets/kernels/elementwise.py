"""Elementwise operators as vector expressions, and chains of them that run inside a store.

A `Chain` is a small program over vectors: every kernel can run one on its results before they
are stored, so bias, activation and residual cost no pass over memory. GELU, SiLU and HardSwish
need no rule of their own: their ONNX nodes simply become steps of a chain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from tvm import tirx

from tilewright.targets.kernels.pen import Expr, Pen
from tilewright.targets.kernels.vector_math import Math, number


@dataclass(frozen=True)
class Source:
    """Where a step's operand comes from.

    `kind` is "result" (what the kernel computed), "step" (an earlier step, `index`), "operand"
    (memory, the chain's operand `index`) or "number" (`value`, of `dtype`).
    """

    kind: str
    index: int = 0
    value: float | int = 0.0
    dtype: str = "float32"


@dataclass(frozen=True)
class Step:
    """One elementwise node."""

    op: str
    inputs: tuple[Source, ...]
    attrs: tuple[tuple[str, float | int | str], ...] = ()


@dataclass(frozen=True)
class Chain:
    """Steps in order, and which values are stored: sources, one an output."""

    steps: tuple[Step, ...] = ()
    outputs: tuple[Source, ...] = (Source("result"),)


def run_chain(
    pen: Pen, chain: Chain, result: Expr | None, operand: Callable[[int], Expr], width: int
) -> list[Expr]:
    """Write a chain's steps for one vector and return the values of its outputs.

    `operand(i)` loads the chain's i-th memory operand for the place at hand.
    """
    loaded: dict[int, Expr] = {}
    done: list[Expr] = []

    def value(source: Source) -> Expr:
        if source.kind == "result":
            return result
        if source.kind == "step":
            return done[source.index]
        if source.kind == "number":
            return number(source.value, source.dtype, width)
        if source.index not in loaded:
            loaded[source.index] = pen.register(operand(source.index))
        return loaded[source.index]

    for step in chain.steps:
        inputs = [value(source) for source in step.inputs]
        maker = OPERATORS[step.op]
        done.append(pen.register(maker(Math(pen, width, dict(step.attrs)), *inputs)))
    return [value(source) for source in chain.outputs]


def _clip(m: Math, x: Expr, low: Expr | None = None, high: Expr | None = None) -> Expr:
    # The limits come first: NaN then passes through, as in `Math.at_least`.
    if low is not None:
        x = tirx.max(low, x)
    if high is not None:
        x = tirx.min(high, x)
    return x


def _hard_sigmoid(m: Math, x: Expr) -> Expr:
    line = x * m.number_of("alpha", 0.2) + m.number_of("beta", 0.5)
    return m.clamp(line, 0.0, 1.0)


def _hard_swish(m: Math, x: Expr) -> Expr:
    return x * m.clamp(x * m.f(1 / 6) + m.f(0.5), 0.0, 1.0)


def _gelu(m: Math, x: Expr) -> Expr:
    if m.attrs.get("approximate") == "tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u), which goes to 0 without cancelling.
        twice = x * m.f(2 * math.sqrt(2 / math.pi)) * (m.f(1.0) + m.f(0.044715) * x * x)
        return x * m.sigmoid(twice)
    return x * m.f(0.5) * (m.f(1.0) + m.erf(x * m.f(math.sqrt(0.5))))


def _leaky_relu(m: Math, x: Expr) -> Expr:
    return tirx.Select(x > m.f(0.0), x, x * m.number_of("alpha", 0.01))


def _elu(m: Math, x: Expr) -> Expr:
    alpha = m.number_of("alpha", 1.0)
    return tirx.Select(x > m.f(0.0), x, alpha * (m.exp(x) - m.f(1.0)))


def _softplus(m: Math, x: Expr) -> Expr:
    # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which cannot overflow.
    tail = m.log(m.f(1.0) + m.exp(m.f(0.0) - m.llvm("fabs", x)))
    return m.at_least(0.0, x) + tail


def _pow(m: Math, x: Expr, _: Expr) -> Expr:
    # Only small exponents that are known come here: see `is_elementwise` in lower/chains.py.
    exponent = float(m.attrs["exponent"])
    if exponent == 0.5:
        return m.llvm("sqrt", x)
    result = x
    for _round in range(int(exponent) - 1):
        result = m.keep(result * x)
    return result


def _cast(m: Math, x: Expr) -> Expr:
    to = str(m.attrs["to"])
    if _is_bool(x) and to != "bool":
        return tirx.Select(x, number(1, to, m.width), number(0, to, m.width))
    return tirx.Cast(m.typed(to), x)


def _quantize(m: Math, x: Expr) -> Expr:
    # The exact quotient without a division: one step of Newton on the product with 1/scale
    # (Markstein, "Computation of elementary functions", 1990). Then the limits, which are
    # whole, and rounding half to even.
    scale, zero, dtype = np.float32(m.attrs["scale"]), int(m.attrs["zero"]), m.attrs["dtype"]
    inverse = m.f(float(np.float32(1) / scale))
    # The first limit keeps infinity from becoming NaN.
    quotient = m.clamp(x * inverse, -1024.0, 1024.0)
    rest = m.llvm("fma", quotient, m.f(-float(scale)), x)
    quotient = m.llvm("fma", rest, inverse, quotient)
    least, most = (0, 255) if dtype == "uint8" else (-128, 127)
    limited = m.clamp(quotient, float(least - zero), float(most - zero))
    whole = tirx.Cast(m.typed("int32"), m.llvm("roundeven", limited))
    return tirx.Cast(m.typed(str(dtype)), whole + number(zero, "int32", m.width))


def _dequantize(m: Math, x: Expr) -> Expr:
    whole = tirx.Cast(m.typed("int32"), x) - number(int(m.attrs["zero"]), "int32", m.width)
    return tirx.Cast(m.typed("float32"), whole) * m.number_of("scale", 1.0)


def _countable(m: Math, x: Expr) -> Expr:
    # LLVM compares vectors of bool as if they were floats, and refuses; casts of them TVM does.
    if not _is_bool(x):
        return x
    return tirx.Select(x, number(1, "int32", m.width), number(0, "int32", m.width))


def _is_bool(x: Expr) -> bool:
    return str(x.ty).startswith("bool")


OPERATORS: dict[str, Callable[..., Expr]] = {
    "Identity": lambda m, x: x,
    "Add": lambda m, a, b: a + b,
    "Sub": lambda m, a, b: a - b,
    "Mul": lambda m, a, b: a * b,
    "Div": lambda m, a, b: a / b,
    "Min": lambda m, *values: reduce(partial(m.extreme, "minimum"), values),
    "Max": lambda m, *values: reduce(partial(m.extreme, "maximum"), values),
    "Pow": _pow,
    "Neg": lambda m, x: x * m.f(-1.0),
    "Abs": lambda m, x: m.llvm("fabs", x),
    "Sqrt": lambda m, x: m.llvm("sqrt", x),
    "Floor": lambda m, x: m.llvm("floor", x),
    "Ceil": lambda m, x: m.llvm("ceil", x),
    "Round": lambda m, x: m.llvm("roundeven", x),
    "Reciprocal": lambda m, x: m.f(1.0) / x,
    "Exp": lambda m, x: m.exp(x),
    "Erf": lambda m, x: m.erf(x),
    "Tanh": lambda m, x: m.tanh(x),
    "Sigmoid": lambda m, x: m.sigmoid(x),
    "Relu": lambda m, x: m.at_least(0.0, x),
    "LeakyRelu": _leaky_relu,
    "PRelu": lambda m, x, slope: tirx.Select(x > m.f(0.0), x, x * slope),
    "Elu": _elu,
    "Softplus": _softplus,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Gelu": _gelu,
    "Where": lambda m, c, a, b: tirx.Select(c, a, b),
    "Equal": lambda m, a, b: tirx.EQ(_countable(m, a), _countable(m, b)),
    "Xor": lambda m, a, b: tirx.NE(_countable(m, a), _countable(m, b)),
    "And": lambda m, a, b: tirx.And(a, b),
    "Or": lambda m, a, b: tirx.Or(a, b),
    "Not": lambda m, x: tirx.Not(x),
    "Greater": lambda m, a, b: a > b,
    "Less": lambda m, a, b: a < b,
    "GreaterOrEqual": lambda m, a, b: a >= b,
    "LessOrEqual": lambda m, a, b: a <= b,
    "Cast": _cast,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
