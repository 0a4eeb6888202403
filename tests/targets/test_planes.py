"""Depthwise convolution and pooling, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import agree, built, every_isa, graph_of, islands, normal_feeds
from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.targets.kernels.planes import PlaneShape

few = settings(deadline=None, max_examples=6)
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def depthwise(draw: st.DrawFn) -> Graph:
    kernel, strides, dilations = draw(PAIR), draw(PAIR), draw(PAIR)
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    size = [
        (k - 1) * d + 1 + draw(st.integers(0, 18))
        for k, d in zip(kernel, dilations, strict=True)
    ]
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    multiplier = draw(st.integers(1, 2))
    return graph_of(
        f"g (float[{batch},{channels},{size[0]},{size[1]}] x) => (float[a,b,c,d] y)"
        f" {{ a = Conv <group = {channels}, strides = {list(strides)},"
        f" dilations = {list(dilations)}, pads = {list(pads)}> (x, w, b) y = Relu(a) }}",
        w=normal(channels * multiplier, 1, *kernel),
        b=normal(channels * multiplier),
    )


@every_isa
@few
@given(graph=depthwise())
def test_a_depthwise_convolution_of_any_window_agrees(isa: str, graph: Graph) -> None:
    agree(graph, normal_feeds(graph), isa)


@st.composite
def pools(draw: st.DrawFn) -> Graph:
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel, strides = draw(PAIR), draw(PAIR)
    # onnxruntime refuses pads as wide as the window.
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    attributes = [
        f"kernel_shape = {list(kernel)}",
        f"strides = {list(strides)}",
        f"pads = {pads}",
        f"ceil_mode = {draw(st.integers(0, 1))}",
    ]
    if op == "AveragePool":
        attributes.append(f"count_include_pad = {draw(st.integers(0, 1))}")
    size = [k + draw(st.integers(0, 18)) for k in kernel]
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return graph_of(
        f"g (float[{batch},{channels},{size[0]},{size[1]}] x) => (float[a,b,c,d] y)"
        f" {{ y = {op} <{', '.join(attributes)}> (x) }}"
    )


@every_isa
@settings(deadline=None, max_examples=6)
@given(graph=pools())
def test_a_pool_of_any_window_agrees(isa: str, graph: Graph) -> None:
    feeds = normal_feeds(graph)
    # In ceil mode onnxruntime drops a last window that onnx's shape inference may count.
    assume(list(oracle.run(graph, feeds)["y"].shape) == list(graph.outputs[0].shape))
    agree(graph, feeds, isa)


@every_isa
def test_pools_of_one_axis_dilated_and_global(isa: str) -> None:
    graph = graph_of(
        "g (float[2,3,19] x, float[1,3,9,10] z) => (float[a,b,c] p, float[d,e,f] q,"
        " float[g,h,i,j] r, float[k,l,m,n] s, float[o,t,u,v] w)"
        " { p = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (x)"
        " q = AveragePool <kernel_shape = [4], strides = [3], pads = [2, 1]> (x)"
        " r = MaxPool <kernel_shape = [2, 3], dilations = [2, 3]> (z)"
        " s = GlobalAveragePool(z)"
        ' w = AveragePool <kernel_shape = [3, 3], auto_pad = "SAME_UPPER",'
        " strides = [2, 2]> (z)"
        " }",
        opset=19,
    )
    assert islands(agree(graph, normal_feeds(graph), isa)) == []


def test_a_max_pool_keeps_minus_infinity() -> None:
    graph = graph_of(
        "g (float[1,1,4,4] x) => (float[1,1,3,3] y)"
        " { y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1]> (x) }"
    )
    x = np.full((1, 1, 4, 4), -np.inf, np.float32)
    x[0, 0, 3, 3] = -3.4028235e38
    expected = np.full((1, 1, 3, 3), -np.inf, np.float32)
    expected[0, 0, 2, 2] = x[0, 0, 3, 3]
    # onnxruntime answers with the lowest finite number in some of these windows.
    np.testing.assert_array_equal(built(graph)[0]({"x": x})["y"], expected)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_an_activation_behind_a_pool_runs_in_its_store(op: str) -> None:
    graph = graph_of(
        "g (float[1,2,8,9] x, float[1,2,4,4] r) => (float[1,2,4,4] y)"
        f" {{ a = {op} <kernel_shape = [2, 2], strides = [2, 2]> (x)"
        " b = Add(a, r) y = Tanh(b) }"
    )
    made = agree(graph, normal_feeds(graph))
    assert made.details["calls"] == "1"


def test_a_window_of_one_place_and_a_strided_one_agree() -> None:
    graph = graph_of(
        "g (float[1,2,8,9] x) => (float[a,b,c,d] y, float[e,f,h,i] z, float[j,k,l,m] v)"
        " { y = Conv <group = 2> (x, w) z = Conv <group = 2, strides = [2, 3]> (x, w)"
        " v = MaxPool <kernel_shape = [1, 1]> (x) }",
        w=normal(2, 1, 1, 1),
    )
    agree(graph, normal_feeds(graph))


def test_a_plane_sorted_by_phase_has_each_tap_in_a_row() -> None:
    plane = PlaneShape(8, 8, 1, 1, 4, 4, (3, 3), (2, 2), (1, 1))
    assert plane.reach == (9, 9)
    # Padded columns 0, 2, 4, 6, 8 of the even rows come first, five in a row.
    assert [plane.at(0, x) for x in (0, 2, 4, 6, 8)] == [0, 1, 2, 3, 4]
    assert plane.at(0, 1) == 25
    assert plane.tap(2, 2) == plane.at(2, 2) == 6


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_window_that_starts_behind_the_input_is_none(op: str) -> None:
    window = "kernel_shape = [2, 2], strides = [3, 3], pads = [0, 0, 1, 1], ceil_mode = 1"
    graph = graph_of(
        f"g (float[1,2,7,6] x) => (float[a,b,c,d] y) {{ y = {op} <{window}> (x) }}"
    )
    feeds = normal_feeds(graph)
    executable, _ = built(graph)
    if graph.outputs[0].shape == [1, 2, 3, 2]:
        np.testing.assert_allclose(executable(feeds)["y"], oracle.run(graph, feeds)["y"])
    else:
        # Shape inference that counts such windows is named, not believed.
        with pytest.raises(UnusableInput, match="shape inference says"):
            executable(feeds)


def test_a_max_pool_of_nan_is_nan() -> None:
    graph = graph_of(
        "g (float[1,1,4,20] x) => (float[1,1,3,19] y)"
        " { y = MaxPool <kernel_shape = [2, 2]> (x) }"
    )
    x = normal(1, 1, 4, 20)
    x[0, 0, 1, 4] = x[0, 0, 3, 19] = np.nan
    expected = np.max([x[..., i : i + 3, j : j + 19] for i in (0, 1) for j in (0, 1)], axis=0)
    np.testing.assert_array_equal(built(graph)[0]({"x": x})["y"], expected)
