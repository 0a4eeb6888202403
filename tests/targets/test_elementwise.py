"""Every operator of a chain against onnxruntime, on values small and huge."""

import numpy as np
import pytest

from tests.targets.builds import (
    EXACT,
    Within,
    agree,
    built,
    cpu,
    every_isa,
    graph_of,
    islands,
)
from tilewright import oracle
from tilewright.targets.kernels.elementwise import OPERATORS

# Past every place where an implementation switches: 0, underflow, saturation, overflow of e^x.
EDGES = [0.0, 1e-38, 1e-30, 1e-6, 1e-3, 0.5, 1.5, 2.5, 3.99, 4.01, 7.9, 9.0, 40.0, 86.5, 87.5]
EDGES += [88.3, 88.7, 89.0, 104.0, 1e4, 3e9, 1e20, 3e38]
# 208 = 13 vectors: without a remainder, half the code compiles; other tests have remainders.
WIDE = np.array([*EDGES, *(-e for e in EDGES), *np.linspace(-6, 6, 162)], np.float32)

ANYWHERE = {
    "Identity": "Identity(x)",
    "Neg": "Neg(x)",
    "Abs": "Abs(x)",
    "Floor": "Floor(x)",
    "Ceil": "Ceil(x)",
    "Round": "Round(x)",
    "Reciprocal": "Reciprocal(x)",
    "Exp": "Exp(x)",
    "Erf": "Erf(x)",
    "Tanh": "Tanh(x)",
    "Sigmoid": "Sigmoid(x)",
    "Relu": "Relu(x)",
    "LeakyRelu": "LeakyRelu <alpha = 0.2> (x)",
    "PRelu": "PRelu(x, slope)",
    "Elu": "Elu <alpha = 1.5> (x)",
    "Softplus": "Softplus(x)",
    "Clip": "Clip(x, low, high)",
    "HardSigmoid": "HardSigmoid <alpha = 0.3, beta = 0.4> (x)",
    "HardSwish": "HardSwish(x)",
    "Gelu": "Gelu(x)",
    "GeluTanh": 'Gelu <approximate = "tanh"> (x)',
    "Add": "Add(x, z)",
    "Sub": "Sub(z, x)",
    "Mul": "Mul(x, z)",
    "Div": "Div(z, x)",
    "Min": "Min(x, z, two)",
    "Max": "Max(x, z, two)",
    "Square": "Pow(x, two)",
    "Cast": "Cast <to = 1> (x)",
}
MASKS = {
    "Equal": "Equal(z, x)",
    "Greater": "Greater(x, z)",
    "Less": "Less(x, two)",
    "GreaterOrEqual": "GreaterOrEqual(x, z)",
    "LessOrEqual": "LessOrEqual(z, x)",
    "CastToBool": "Cast <to = 9> (x)",
    "Not": "Not(a)",
    "And": "And(a, b)",
    "Or": "Or(a, b)",
    "Xor": "Xor(a, b)",
    "EqualBool": "Equal(a, b)",
}
LIMITS = {"low": np.float32(-1.5), "high": np.float32(40.0), "two": np.float32(2.0)}


def second(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(WIDE)


@every_isa
def test_operators_agree_with_onnxruntime_on_all_of_float32(isa: str) -> None:
    # Behind one Identity they are one kernel with many outputs, which compiles in less time.
    body = "x = Identity(u) " + " ".join(f"y{n} = {text}" for n, text in ANYWHERE.items())
    outputs = ", ".join(f"float[{WIDE.size}] y{name}" for name in ANYWHERE)
    graph = graph_of(
        f"g (float[{WIDE.size}] u, float[{WIDE.size}] z) => ({outputs}) {{ {body} }}",
        20,
        slope=np.linspace(-1, 1, WIDE.size, dtype=np.float32),
        **{name: np.array(value) for name, value in LIMITS.items()},
    )
    # Polynomials are right to 4e-7 or so; next to zero they are right absolutely.
    made = agree(
        graph,
        {"u": WIDE, "z": second(1)},
        isa,
        within=Within(rtol=2e-6, atol=1e-6),
    )
    assert islands(made) == []


@every_isa
def test_roots_and_powers_agree_where_they_are_defined(isa: str) -> None:
    above = np.abs(WIDE)
    texts = [f"y{i} = Pow(x, e{i})" for i in range(4)]
    outputs = ", ".join(f"float[{WIDE.size}] y{i}" for i in range(5))
    graph = graph_of(
        f"g (float[{WIDE.size}] x) => ({outputs}) {{ y4 = Sqrt(x) {' '.join(texts)} }}",
        17,
        **{f"e{i}": np.array(e, np.float32) for i, e in enumerate((0.5, 1.0, 3.0, 4.0))},
    )
    made = agree(graph, {"x": above}, isa, within=Within(rtol=1e-6, atol=0))
    assert islands(made) == []


@every_isa
def test_comparisons_and_logic_give_bools(isa: str) -> None:
    n = WIDE.size
    body = " ".join(f"y{name} = {text}" for name, text in MASKS.items())
    outputs = ", ".join(f"bool[{n}] y{name}" for name in MASKS)
    graph = graph_of(
        f"g (float[{n}] x, float[{n}] z, bool[{n}] a, bool[{n}] b) => ({outputs},"
        f" float[{n}] yWhere, float[{n}] yMask, bool[{n}] yInner) {{ {body}"
        " c = Greater(x, z) yWhere = Where(c, x, z) d = Cast <to = 1> (a) yMask = Mul(d, x)"
        " less = Less(x, z) yInner = And(less, a) }",
        two=np.array(2.0, np.float32),
    )
    r = np.random.default_rng(0)
    feeds = {"x": WIDE, "z": second(2), "a": r.random(n) < 0.5, "b": r.random(n) < 0.5}
    feeds["z"][::3] = WIDE[::3]
    made = agree(graph, feeds, isa, within=EXACT)
    assert islands(made) == []


@every_isa
@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_whole_numbers_stay_exact(kind: str, isa: str) -> None:
    n = 37
    to = {"int64": 7, "int32": 6}[kind]
    graph = graph_of(
        f"g ({kind}[{n}] x, {kind}[{n}] z) => ({kind}[{n}] sum, {kind}[{n}] difference,"
        f" {kind}[{n}] product, {kind}[{n}] least, {kind}[{n}] most, bool[{n}] same,"
        f" bool[{n}] less, {kind}[{n}] chosen, float[{n}] f, {kind}[{n}] back)"
        " { sum = Add(x, z) difference = Sub(x, z) product = Mul(x, z) least = Min(x, z)"
        " most = Max(x, z) same = Equal(x, z) less = Less(x, z) chosen = Where(same, x, three)"
        f" f = Cast <to = 1> (x) half = Mul(f, h) back = Cast <to = {to}> (half) }}",
        three=np.array(3, kind),
        h=np.array(0.5, np.float32),
    )
    r = np.random.default_rng(1)
    feeds = {k: r.integers(-9, 10, n).astype(kind) for k in ("x", "z")}
    made = agree(graph, feeds, isa, within=EXACT)
    assert islands(made) == []


def test_whole_numbers_beyond_float32_keep_every_digit() -> None:
    big = np.array([2**40 + 1, -(2**53) - 1, 2**24 + 1], np.int64)
    graph = graph_of(
        "g (int64[3] x) => (int64[3] y) { y = Add(x, one) }",
        one=np.array(2**53 + 1, np.int64),
    )
    agree(graph, {"x": big}, within=EXACT)


@every_isa
def test_not_a_number_and_infinity_pass_as_in_onnxruntime(isa: str) -> None:
    ops = ["Relu", "Exp", "Sigmoid", "Tanh", "Neg", "Abs", "Sqrt", "Erf", "HardSwish"]
    body = " ".join(f"y{op} = {op}(x)" for op in ops)
    outputs = ", ".join(f"float[20] y{op}" for op in ops)
    graph = graph_of(f"g (float[20] x) => ({outputs}) {{ {body} }}")
    x = np.linspace(0, 3, 20, dtype=np.float32)
    x[3] = np.inf
    agree(graph, {"x": x}, isa, within=Within(rtol=2e-6, atol=1e-6))


def test_every_operator_is_tried_here() -> None:
    # The quantizers are in test_integers.py.
    quantizers = {"QuantizeLinear", "DequantizeLinear"}
    tried = {*ANYWHERE, *MASKS, *quantizers, "Sqrt", "Pow", "Where"}
    assert set(OPERATORS) <= tried


@every_isa
def test_nan_stays_nan(isa: str) -> None:
    x = np.array([np.nan, -1, 0, 2, np.inf, -np.inf, 5, np.nan] * 3, np.float32)
    z = np.roll(x, 3)
    # Whether -inf * 0.2 + 0.5 and the like are NaN, onnxruntime and ONNX agree on.
    calls = {name: call for name, call in ANYWHERE.items() if name not in ("Cast", "Round")}
    for name, call in calls.items():
        graph = graph_of(
            f"g (float[24] x, float[24] z) => (float[24] y) {{ y = {call} }}",
            opset=20,
            low=np.array(-0.5, np.float32),
            high=np.array(1.5, np.float32),
            two=np.array(2, np.float32),
            slope=np.array(0.3, np.float32),
        )
        expected = oracle.run(graph, {"x": x, "z": z})["y"]
        found = built(graph, cpu(isa))[0]({"x": x, "z": z})["y"]
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)


def test_a_clip_may_have_one_limit_or_none() -> None:
    graph = graph_of(
        "g (float[20] x) => (float[20] a, float[20] b, float[20] c)"
        " { a = Clip(x, low) b = Clip(x, , low) c = Clip(x) }",
        low=np.array(-0.5, np.float32),
    )
    x = np.array([np.inf, -np.inf, *range(-9, 9)], np.float32)
    assert islands(agree(graph, {"x": x}, within=EXACT)) == []
    old = graph_of("g (float[20] x) => (float[20] a) { a = Clip <min = 0.0> (x) }", opset=6)
    agree(old, {"x": x}, within=EXACT)


def test_minus_zero_is_the_negative_of_zero() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { n = Neg(x) y = Reciprocal(n) }")
    agree(graph, {"x": np.array([0.0, -0.0], np.float32)}, within=EXACT)


def test_a_quotient_that_is_whole_stays_whole() -> None:
    graph = graph_of(
        "g (float[2000] x) => (float[2000] y) { a = Div(x, c) y = Floor(a) }",
        c=np.array(41, np.float32),
    )
    agree(graph, {"x": np.arange(2000, dtype=np.float32)}, within=EXACT)


@every_isa
def test_the_error_function_stays_within_one(isa: str) -> None:
    graph = graph_of("g (float[60000] x) => (float[60000] y) { y = Erf(x) }")
    executable, _ = built(graph, cpu(isa))
    found = executable({"x": np.linspace(-30, 30, 60000, dtype=np.float32)})["y"]
    assert np.abs(found).max() == 1.0
