"""Reductions, softmax and layer normalization, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    Within,
    agree,
    built,
    every_isa,
    graph_of,
    islands,
    kernels,
    normal_feeds,
)
from tilewright import oracle
from tilewright.graph import Graph

REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL2",
    "ReduceSumSquare",
)
SHAPES = st.lists(st.integers(1, 19), min_size=1, max_size=4)
few = settings(deadline=None, max_examples=6)
# Sums of a few thousand unit normals, added up in another order.
SUMS = Within(rtol=1e-5, atol=1e-4)


@st.composite
def reductions(draw: st.DrawFn) -> Graph:
    """Return a reduction of any axes, of a tensor that may lie transposed, with a tail."""
    shape = draw(SHAPES)
    op, keep = draw(st.sampled_from(REDUCTIONS)), draw(st.integers(0, 1))
    axes = draw(st.sets(st.integers(-len(shape), len(shape) - 1), min_size=1))
    axes = {a % len(shape) for a in axes}
    perm = draw(st.permutations(range(len(shape))))
    rank = len(shape) if keep else len(shape) - len(axes)
    out = ",".join(f"d{i}" for i in range(rank))
    return graph_of(
        f"g (float[{','.join(map(str, shape))}] x) => (float[{out}] y)"
        f" {{ t = Transpose <perm = {list(perm)}> (x)"
        f" r = {op} <keepdims = {keep}> (t, axes) s = Sigmoid(r) y = Mul(r, s) }}",
        opset=18,
        axes=np.array(sorted(axes)),
    )


@every_isa
@settings(deadline=None, max_examples=6)
@given(graph=reductions())
def test_a_reduction_over_any_axes_agrees(isa: str, graph: Graph) -> None:
    agree(graph, normal_feeds(graph), isa, within=SUMS)


def test_a_reduction_over_all_axes_gives_a_scalar() -> None:
    body = " ".join(f"y{i} = {op} <keepdims = 0> (x)" for i, op in enumerate(REDUCTIONS))
    outputs = ", ".join(f"float y{i}" for i in range(len(REDUCTIONS)))
    graph = graph_of(f"g (float[3,5,7] x) => ({outputs}) {{ {body} }}", opset=18)
    assert islands(agree(graph, normal_feeds(graph), within=SUMS)) == []


def test_axes_in_attributes_and_reductions_of_nothing_agree() -> None:
    graph = graph_of(
        "g (float[3,5,1] x) => (float[3,1] y, float[3,5] z)"
        " { y = ReduceMean <axes = [1], keepdims = 0> (x)"
        " z = ReduceMax <axes = [-1], keepdims = 0> (x) }",
        opset=13,
    )
    agree(graph, normal_feeds(graph))


def test_a_reduction_whose_parts_are_read_elsewhere_agrees() -> None:
    graph = graph_of(
        "g (float[4,9] x) => (float[4,1] y, float[4,1] z, float[4,9] w)"
        " { y = ReduceMean (x, axes) a = Sqrt(z) z = Abs(y) w = Sub(x, a) }",
        opset=18,
        axes=np.array([1]),
    )
    agree(graph, normal_feeds(graph))


def test_infinities_reduce_as_in_onnxruntime() -> None:
    graph = graph_of(
        "g (float[3,20] x) => (float[3,1] low, float[3,1] high, float[3,20] s)"
        " { high = ReduceMax(x, axes) low = ReduceMin(x, axes)"
        " y = Clip(x, least, most) s = Softmax(y) }",
        18,
        axes=np.array([1]),
        least=np.array(-3e38, np.float32),
        most=np.array(3e38, np.float32),
    )
    x = np.full((3, 20), -np.inf, np.float32)
    x[0, 4] = 1.0
    x[1] = np.inf
    agree(graph, {"x": x})


@st.composite
def softmaxes(draw: st.DrawFn) -> Graph:
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    perm = draw(st.permutations(range(len(shape))))
    op = draw(st.sampled_from(["Softmax", "LogSoftmax"]))
    return graph_of(
        f"g (float[{','.join(map(str, shape))}] x)"
        f" => (float[{','.join(str(shape[p]) for p in perm)}] y)"
        f" {{ t = Transpose <perm = {list(perm)}> (x) y = {op} <axis = {axis}> (t) }}",
        opset=draw(st.sampled_from([11, 13])),
    )


@every_isa
@settings(deadline=None, max_examples=6)
@given(graph=softmaxes())
def test_a_softmax_along_any_axis_agrees(isa: str, graph: Graph) -> None:
    assert islands(agree(graph, normal_feeds(graph), isa)) == []


def test_a_softmax_of_large_and_masked_scores_agrees() -> None:
    graph = graph_of("g (float[3,21] x) => (float[3,21] y) { y = Softmax(x) }")
    x = 100 * normal(3, 21)
    x[1, 4:] = -3.4028235e38
    x[2, ::2] = -np.inf
    agree(graph, {"x": x})


@st.composite
def normalizations(draw: st.DrawFn) -> Graph:
    shape = [draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 70))]
    axis = draw(st.sampled_from([-1, 2, 1, -2]))
    extents = shape[axis:]
    bias = draw(st.booleans())
    perm = [0, 2, 1] if draw(st.booleans()) else [0, 1, 2]
    given_shape = [shape[p] for p in perm]
    weights = {"s": normal(*extents), **({"b": normal(*extents)} if bias else {})}
    return graph_of(
        f"g (float[{','.join(map(str, given_shape))}] x)"
        f" => (float[{','.join(map(str, shape))}] y)"
        f" {{ t = Transpose <perm = {perm}> (x)"
        f" y = LayerNormalization <axis = {axis}, epsilon = 0.001>"
        f" (t, s{', b' if bias else ''}) }}",
        17,
        **weights,
    )


@every_isa
@few
@given(graph=normalizations())
def test_a_layer_normalization_of_any_shape_agrees(isa: str, graph: Graph) -> None:
    agree(graph, normal_feeds(graph), isa, within=Within(rtol=1e-5, atol=3e-5))


def test_a_row_far_from_zero_keeps_its_variance() -> None:
    graph = graph_of(
        "g (float[4,64] x) => (float[4,64] y) { y = LayerNormalization(x, s) }",
        s=np.ones(64, np.float32),
    )
    x = normal(4, 64).astype(np.float64) + 1000.0
    exact = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    found = built(graph)[0]({"x": x.astype(np.float32)})["y"]
    # An input near 1000 is itself rounded by up to 3e-5.
    np.testing.assert_allclose(found, exact, atol=2e-4)


SPELLED_OUT = """g (float[2,5,12] x) => (OUT) {
    m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Pow(d, two)
    v = ReduceMean <axes = [-1]> (p)  e = Add(v, eps)  r = Sqrt(e)
    n = Div(d, r)  k = Mul(n, s)  y = Add(k, b)
}"""


@pytest.mark.parametrize(
    ("outputs", "calls"),
    [
        ("float[2,5,12] y", "1"),
        ("float[2,5,12] y, float[2,5,12] d", None),
        ("float[2,5,12] y, float[2,5,1] m", None),
        ("float[2,5,12] y, float[2,5,1] v", None),
        ("float[2,5,12] y, float[2,5,12] k", None),
    ],
)
def test_a_spelled_out_layer_normalization_is_one_kernel_unless_its_parts_are_read(
    outputs: str, calls: str | None
) -> None:
    graph = graph_of(
        SPELLED_OUT.replace("OUT", outputs),
        opset=13,
        two=np.array(2.0, np.float32),
        eps=np.array(1e-5, np.float32),
        s=normal(12),
        b=normal(12),
    )
    made = agree(graph, normal_feeds(graph))
    assert islands(made) == []
    if calls is not None:
        assert made.details["calls"] == calls


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("beside", [16, 40, 61])
def test_threads_split_a_few_long_rows_of_a_softmax(beside: int, threads: int) -> None:
    graph = graph_of(
        f"g (float[1,2500,{beside}] x) => (float[1,2500,{beside}] y)"
        " { y = Softmax <axis = 1> (x) }"
    )
    x = 30 * normal(1, 2500, beside)
    x[0, :1300, 3] = -np.inf
    executable, _ = built(graph, threads=threads)
    expected = oracle.run(graph, {"x": x})["y"]
    np.testing.assert_allclose(executable({"x": x})["y"], expected, rtol=1e-4, atol=1e-30)


# Two threads race for what they share; 20 rows beside each other are one vector and a rest.
@pytest.mark.parametrize("beside", [9, 12, 20])
def test_threads_share_no_row_of_a_softmax(beside: int) -> None:
    graph = graph_of(
        f"g (float[1,1000,{beside}] x) => (float[1,1000,{beside}] y)"
        " { y = Softmax <axis = 1> (x) }"
    )
    feeds = normal_feeds(graph)
    expected = oracle.run(graph, feeds)["y"]
    executable, _ = built(graph, threads=2)
    for _ in range(40):
        np.testing.assert_allclose(executable(feeds)["y"], expected, rtol=1e-4)


@every_isa
@pytest.mark.parametrize("operator", ["Softmax <axis = 1>", "LogSoftmax <axis = 1>"])
def test_rows_whose_neighbours_lie_apart_agree(isa: str, operator: str) -> None:
    graph = graph_of(
        "g (float[1,20,18] x, float[1,20,1] z) => (float[1,20,9] y, float[1,20,9] v)"
        f" {{ t = Slice(x, zero, end, last, two) y = {operator} (t)"
        f" u = Expand(z, wide) v = {operator} (u) }}",
        zero=np.array([0]),
        end=np.array([18]),
        last=np.array([2]),
        two=np.array([2]),
        wide=np.array([1, 20, 9]),
    )
    assert islands(agree(graph, normal_feeds(graph), isa)) == []


@every_isa
def test_a_normalization_of_a_slice_that_lies_transposed_agrees(isa: str) -> None:
    graph = graph_of(
        "g (float[1,20,18] x) => (float[1,9,20] y) { t = Slice(x, zero, end, last, two)"
        " u = Transpose <perm = [0, 2, 1]> (t) y = LayerNormalization(u, scale, bias) }",
        zero=np.array([0]),
        end=np.array([18]),
        last=np.array([2]),
        two=np.array([2]),
        scale=normal(20),
        bias=normal(20, seed=1),
    )
    assert islands(agree(graph, normal_feeds(graph), isa)) == []


def test_what_a_normalization_kernel_has_not_is_left_to_onnxruntime() -> None:
    graph = graph_of(
        "g (float[2,4] x) => (float[2,4] y, float[2,1] m, float[2,4] z)"
        " { y, m = LayerNormalization(x, scale, bias) z = LayerNormalization(x, rows) }",
        scale=normal(4),
        bias=normal(4, seed=1),
        rows=normal(2, 4),
    )
    made = agree(graph, normal_feeds(graph))
    assert len(islands(made)) == 2


@pytest.mark.parametrize("operator", ["Softmax <axis = 0>", "LogSoftmax <axis = 1>"])
def test_a_row_that_holds_nan_or_nothing_but_minus_infinity_is_nan(operator: str) -> None:
    graph = graph_of(f"g (float[4,20] x) => (float[4,20] y) {{ y = {operator} (x) }}")
    x = normal(4, 20)
    x[1, 3], x[:, 7], x[2] = np.nan, -np.inf, -np.inf
    agree(graph, {"x": x})


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_extreme_of_nan_is_nan(operator: str, axis: int) -> None:
    graph = graph_of(
        f"g (float[5,20] x) => (float[n] y) {{ y = {operator} <keepdims = 0> (x, axes) }}",
        opset=18,
        axes=np.array([axis]),
    )
    x = normal(5, 20)
    x[2, 3] = x[4, 18] = np.nan
    # onnxruntime keeps some and drops others.
    expected = (np.max if operator == "ReduceMax" else np.min)(x, axis=axis)
    found = built(graph)[0]({"x": x})["y"]
    np.testing.assert_array_equal(found, expected)


def test_a_softmax_of_very_many_keeps_the_last_digits() -> None:
    count = 20_000
    graph = graph_of(
        f"g (float[{count},8] x) => (float[{count},8] y) {{ y = Softmax<axis=0>(x) }}"
    )
    assert "split_softmax" in kernels(graph)
    # One by one, float32 sums of 0.3 drift from the truth by a ten-thousandth.
    x = np.full((count, 8), np.log(np.float32(0.3)), np.float32)
    x[0] = 0
    executable, _ = built(graph, threads=1)
    each = np.exp(np.float64(x[1, 0]))
    np.testing.assert_allclose(executable({"x": x})["y"][0], 1 / (1 + (count - 1) * each), 3e-6)
