"""Functions of vectors that no instruction computes: exp, erf, tanh, log, quotients."""

import math

from tvm import tirx

from tilewright.targets.kernels.pen import Expr, Pen

# Odd/even minimax polynomials of erf on |x| <= 4: at most 4e-7 off, and of 2^f for exp.
_ERF_ODD = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_EVEN = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    0.5,
)
_VANISHES = -86.9  # ln 2^-125.4: below, 2^(n - 1) would be a denormal
_TANH_ODD = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_EVEN = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def number(value: float | int, dtype: str, width: int) -> Expr:
    """Return a constant in every lane."""
    literal = tirx.const(int(value) if "float" not in dtype else float(value), dtype)
    return literal if width == 1 else tirx.Broadcast(literal, width)


class Math:
    """Vector arithmetic of one width, with the attributes of the node at hand."""

    def __init__(self, pen: Pen, width: int, attrs: dict[str, float | int | str]) -> None:
        self.pen = pen
        self.width = width
        self.attrs = attrs

    def f(self, value: float) -> Expr:
        """A float32 constant."""
        return number(value, "float32", self.width)

    def typed(self, dtype: str) -> str:
        """A dtype's name at this width."""
        return dtype if self.width == 1 else f"{dtype}x{self.width}"

    def keep(self, value: Expr) -> Expr:
        """Name a value that is used more than once."""
        return self.pen.register(value)

    def opaque(self, value: Expr) -> Expr:
        """Hide from TVM's simplifier what a float hangs on: see `Pen.opaque`."""
        return self.pen.opaque(value, "float32", self.width)

    def polynomial(self, x: Expr, coefficients: tuple[float, ...]) -> Expr:
        """Evaluate by Horner's rule, highest power first."""
        result = self.f(coefficients[0])
        for c in coefficients[1:]:
            result = result * x + self.f(c)
        return self.keep(result)

    def clamp(self, x: Expr, low: float, high: float) -> Expr:
        """Limit to [low, high]; NaN passes through."""
        return self.keep(self.at_most(high, self.at_least(low, x)))

    def at_least(self, low: float, x: Expr) -> Expr:
        """max(low, x), and NaN where x is NaN: the instruction returns its second operand."""
        return tirx.max(self.f(low), x)

    def at_most(self, high: float, x: Expr) -> Expr:
        """min(high, x), and NaN where x is NaN."""
        return tirx.min(self.f(high), x)

    def extreme(self, kind: str, a: Expr, b: Expr) -> Expr:
        """The "maximum" or "minimum" of a and b, and NaN where either is NaN."""
        if not str(a.ty).startswith("float"):
            return tirx.max(a, b) if kind == "maximum" else tirx.min(a, b)
        return self.llvm(kind, a, b)

    def exp(self, x: Expr) -> Expr:
        """e^x: 2^n times a polynomial on the remainder; 1 unit in the last place or so.

        Below e^-86.9 the result is 0, not a denormal: those stop a core for 100 cycles each,
        and masked softmax makes thousands of them.
        """
        vanishes = self.keep(x < self.f(_VANISHES))
        x = self.clamp(x, _VANISHES, 89.0)
        whole = self.keep(self.llvm("roundeven", x * self.f(math.log2(math.e))))
        rest = self.keep(x - whole * self.f(0.693359375) - whole * self.f(-2.12194440e-4))
        # Twice the series times 2^(n - 1): 2^128 has no float32, results up to 2^128 have.
        series = self.polynomial(rest, tuple(2.0 * c for c in _EXP))
        double = self.keep(rest * self.f(2.0) + self.f(2.0))
        mantissa = self.keep(series * rest * rest + double)
        exponent = tirx.Cast(self.typed("int32"), whole) + number(126, "int32", self.width)
        scale = tirx.shift_left(exponent, number(23, "int32", self.width))
        power = self.keep(mantissa * tirx.reinterpret(self.typed("float32"), scale))
        return self.keep(tirx.Select(vanishes, self.f(0.0), power))

    def log(self, x: Expr) -> Expr:
        """Natural logarithm by exponent and a polynomial on [sqrt(1/2), sqrt(2)) (Cephes)."""
        bits = self.keep(tirx.reinterpret(self.typed("int32"), self.opaque(x)))
        half = number(0x3F000000, "int32", self.width)
        low = tirx.bitwise_and(bits, number(0x007FFFFF, "int32", self.width))
        m = self.keep(tirx.reinterpret(self.typed("float32"), tirx.bitwise_or(low, half)))
        raw = tirx.shift_right(bits, number(23, "int32", self.width))
        e = self.keep(tirx.Cast(self.typed("float32"), raw - number(126, "int32", self.width)))
        small = self.keep(m < self.f(math.sqrt(0.5)))
        e = self.keep(e - tirx.Select(small, self.f(1.0), self.f(0.0)))
        m = self.opaque(tirx.Select(small, m + m, m) - self.f(1.0))
        z = self.keep(m * m)
        y = self.polynomial(m, _LOG) * m * z + e * self.f(-2.12194440e-4) - z * self.f(0.5)
        finite = self.keep(m + y + e * self.f(0.693359375))
        size = tirx.bitwise_and(bits, number(0x7FFFFFFF, "int32", self.width))
        # The logarithm of infinity and of NaN is the same again.
        return self.keep(tirx.Select(size < number(0x7F800000, "int32", self.width), finite, x))

    def erf(self, x: Expr) -> Expr:
        """Error function."""
        x = self.clamp(x, -4.0, 4.0)
        square = self.keep(x * x)
        above = self.keep(x * self.polynomial(square, _ERF_ODD))
        return self.clamp(self.ratio(above, self.polynomial(square, _ERF_EVEN)), -1.0, 1.0)

    def tanh(self, x: Expr) -> Expr:
        """Hyperbolic tangent (a rational minimax, as in Eigen)."""
        # Here the quotient is 1 to the last bit: GELU multiplies 1 + tanh(x) by any large -x.
        x = self.clamp(x, -8.078094482421875, 8.078094482421875)
        square = self.keep(x * x)
        return x * self.polynomial(square, _TANH_ODD) / self.polynomial(square, _TANH_EVEN)

    def sigmoid(self, x: Expr) -> Expr:
        """1 / (1 + e^-x); 0 where that is below 2^-92."""
        below = self.keep(self.f(1.0) + self.exp(self.at_most(64.0, self.f(0.0) - x)))
        result = self.ratio(self.f(1.0), below)
        return self.keep(tirx.Select(x < self.f(-64.0), self.f(0.0), result))

    def ratio(self, a: Expr, b: Expr) -> Expr:
        """Divide a by b to a unit in the last place; |b| and |1 / b| are up to 2^100.

        A division of 16 lanes keeps a multiplier busy for as long as 16 products. An estimate
        of 1 / b, a Newton step and a correction by the remainder take six.
        """
        a, b = self.opaque(a), self.opaque(b)
        estimates = {
            (16, 16): "llvm.x86.avx512.rcp14.ps.512",
            (16, 8): "llvm.x86.avx512.rcp14.ps.256",
            (8, 8): "llvm.x86.avx.rcp.ps.256",
        }
        name = estimates.get((self.pen.isa.lanes, self.width))
        if name is None:
            return self.keep(a / b)
        masked = (b, tirx.const(-1, "int16" if self.width == 16 else "int8"))
        rest = masked if "avx512" in name else ()
        estimate = self.keep(tirx.call_llvm_pure_intrin(self.typed("float32"), name, b, *rest))
        inverse = self.opaque(estimate * (self.f(2.0) - b * estimate))
        quotient = self.keep(a * inverse)
        return self.keep(quotient + inverse * (a - b * quotient))

    def llvm(self, intrinsic: str, *operands: Expr) -> Expr:
        """Apply a vector instruction that LLVM has a name for: sqrt, floor, ceil, fabs."""
        suffix = "f32" if self.width == 1 else f"v{self.width}f32"
        return tirx.call_llvm_pure_intrin(
            self.typed("float32"), f"llvm.{intrinsic}.{suffix}", *operands
        )

    def number_of(self, key: str, default: float) -> Expr:
        """An attribute as a constant."""
        return self.f(float(self.attrs.get(key, default)))
