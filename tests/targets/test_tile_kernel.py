"""The tile kernel: layers of any shape and any zeros, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import Within, agree, every_isa, graph_of, islands, normal_feeds
from tilewright.graph import Graph

# Sums of up to 300 products of unit normals, added up in another order.
SUMS = Within(rtol=1e-4, atol=1e-4)
few = settings(deadline=None, max_examples=6)


def with_zeros(draw: st.DrawFn, *shape: int) -> np.ndarray:
    """Return weights that are dense, scattered, tiled by rows, or nothing but zeros."""
    weights = normal(*shape, seed=draw(st.integers(0, 9)))
    r = np.random.default_rng(1)
    kind = draw(st.sampled_from(["dense", "scattered", "columns", "empty rows", "zeros"]))
    if kind == "scattered":
        weights[r.random(shape) < 0.7] = 0.0
    elif kind == "columns":
        weights[:, r.random(shape[1:]) < 0.6] = 0.0
    elif kind == "empty rows":
        weights[: -(-shape[0] // 2)] = 0.0
    elif kind == "zeros":
        weights[:] = 0.0
    return weights


@st.composite
def products(draw: st.DrawFn) -> Graph:
    """Return x (batch, positions, inputs) times a matrix, with a bias and a residual."""
    batch, positions = draw(st.integers(1, 3)), draw(st.integers(1, 70))
    inputs, outputs = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    w = with_zeros(draw, outputs, inputs).T.copy()
    return graph_of(
        f"g (float[{batch},{positions},{inputs}] x, float[{batch},{positions},{outputs}] r)"
        f" => (float[{batch},{positions},{outputs}] y)"
        " { a = MatMul(x, w) c = Add(a, b) d = Relu(c) y = Add(d, r) }",
        w=w,
        b=normal(outputs),
    )


@every_isa
@few
@given(graph=products())
def test_a_matrix_of_any_shape_and_zeros_agrees(isa: str, graph: Graph) -> None:
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert islands(made) == []


@st.composite
def convolutions(draw: st.DrawFn) -> Graph:
    """Return a dense 2-D convolution: remainders, strides, dilations, uneven pads."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, strides, dilations = draw(pair), draw(pair), draw(pair)
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = [
        (k - 1) * d + 1 + draw(st.integers(0, 20))
        for k, d in zip(kernel, dilations, strict=True)
    ]
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    outputs = draw(st.integers(1, 20))
    w = with_zeros(draw, outputs, channels * kernel[0] * kernel[1])
    return graph_of(
        f"g (float[{batch},{channels},{size[0]},{size[1]}] x) => (float[a,b,c,d] y)"
        f" {{ y = Conv <strides = {list(strides)}, dilations = {list(dilations)},"
        f" pads = {list(pads)}> (x, w, b) }}",
        w=w.reshape(outputs, channels, *kernel),
        b=normal(outputs),
    )


@every_isa
@few
@given(graph=convolutions())
def test_a_convolution_of_any_window_agrees(isa: str, graph: Graph) -> None:
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert islands(made) == []


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad_is_resolved(auto_pad: str) -> None:
    graph = graph_of(
        f"g (float[1,3,8,11] x) => (float[a,b,c,d] y, float[e,f,h,i] z)"
        f' {{ y = Conv <auto_pad = "{auto_pad}", strides = [2, 3]> (x, w)'
        f' z = Conv <auto_pad = "{auto_pad}", strides = [2, 2], group = 3> (x, v) }}',
        w=normal(5, 3, 3, 4),
        v=normal(3, 1, 3, 2),
    )
    assert islands(agree(graph, normal_feeds(graph), within=SUMS)) == []


@every_isa
def test_one_axis_dense_and_pointwise(isa: str) -> None:
    graph = graph_of(
        "g (float[2,6,29] x) => (float[a,b,c] y, float[d,e,f] z)"
        " { a = Conv <pads = [1, 2], strides = [2]> (x, w) y = Relu(a) z = Conv (x, v, c) }",
        w=normal(7, 6, 4),
        v=normal(9, 6, 1),
        c=normal(9),
    )
    assert islands(agree(graph, normal_feeds(graph), isa, within=SUMS)) == []


def test_a_tile_without_columns_stores_the_bias() -> None:
    w = normal(8, 6)
    w[:4] = 0.0
    graph = graph_of(
        "g (float[1,6,40] x) => (float[1,8,40] y) { y = Conv (x, w, b) }",
        w=w[:, :, None],
        b=np.arange(8, dtype=np.float32),
    )
    made = agree(graph, normal_feeds(graph), within=SUMS)
    assert made.layers[0].density == 0.5


def test_what_the_layer_says_of_itself_follows_the_zeros() -> None:
    w = np.ones((16, 32), np.float32)
    w[:, ::2] = 0.0
    graph = graph_of(
        "g (float[1,64,32] x) => (float[1,64,16] y) { y = MatMul(x, w) }", w=w.T.copy()
    )
    (layer,) = agree(graph, normal_feeds(graph), within=SUMS).layers
    assert layer.shape == (16, 32, 64)
    assert layer.density == 0.5
    assert layer.kernel.startswith("sparse")
    assert "50% zeros" in layer.reason


@every_isa
def test_many_positions_are_shared_among_threads_and_few_are_not(isa: str) -> None:
    graph = graph_of(
        "g (float[1,8,53,61] x, float[3,40] v) => (float[1,12,53,61] y, float[3,300] z)"
        " { y = Conv (x, w) z = MatMul(v, m) }",
        w=normal(12, 8, 1, 1),
        m=normal(40, 300),
    )
    agree(graph, normal_feeds(graph), isa, within=SUMS)


def test_a_layer_reads_a_transposed_and_a_sliced_tensor_where_it_lies() -> None:
    graph = graph_of(
        "g (float[2,30,5,4] x) => (float[2,5,30,9] y, float[2,3,9] z)"
        " { t = Transpose <perm = [0, 2, 1, 3]> (x) y = MatMul(t, w)"
        " s = Slice(x, starts, ends, axes, steps) u = Squeeze(s, axes3)"
        " v = Transpose <perm = [0, 2, 1]> (u) q = Slice(v, st, en, ax, sp)"
        " z = MatMul(q, m) }",
        w=normal(4, 9),
        m=normal(30, 9),
        starts=np.array([1]),
        ends=np.array([2]),
        axes=np.array([3]),
        steps=np.array([1]),
        axes3=np.array([3]),
        st=np.array([-1]),
        en=np.array([-9]),
        ax=np.array([1]),
        sp=np.array([-2]),
    )
    assert islands(agree(graph, normal_feeds(graph), within=SUMS)) == []


def test_a_layer_may_end_in_a_comparison() -> None:
    graph = graph_of(
        "g (float[1,30,6] x) => (bool[1,30,5] y, bool[1,5,30] c, float[1,30,5] f)"
        " { a = MatMul(x, w) y = Greater(a, zero) t = Transpose <perm = [0, 2, 1]> (x)"
        " p = Conv (t, v) c = Less(p, zero) f = Cast <to = 1> (y) }",
        w=normal(6, 5),
        v=normal(5, 6, 1),
        zero=np.array(0.0, np.float32),
    )
    agree(graph, normal_feeds(graph), within=SUMS)


@every_isa
@pytest.mark.parametrize("shape", [(32, 1), (1, 32, 1), (5, 6, 1), (3, 1, 9, 1)])
def test_positions_may_end_in_axes_of_one(isa: str, shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, shape))
    graph = graph_of(
        f"g (float[{dims},8] x) => (float[{dims},12] y) {{ m = MatMul(x, w) y = Add(m, b) }}",
        w=normal(8, 12),
        b=normal(12),
    )
    assert islands(agree(graph, normal_feeds(graph), isa)) == []


@every_isa
@pytest.mark.parametrize(
    ("maps", "kernel"), [("1,1", (1, 1)), ("3,3", (3, 3)), ("1", (1,)), ("30,1", (3, 1))]
)
def test_convolutions_to_maps_of_one_place_agree(
    isa: str, maps: str, kernel: tuple[int, ...]
) -> None:
    out = ",".join("abcd"[: 2 + len(kernel)])
    graph = graph_of(
        f"g (float[32,8,{maps}] x) => (float[{out}] y) {{ c = Conv(x, w, b) y = Relu(c) }}",
        w=normal(20, 8, *kernel),
        b=normal(20),
    )
    assert islands(agree(graph, normal_feeds(graph), isa)) == []
