"""Layers whose results a window moves over at once, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    NEAR,
    agree,
    built,
    every_isa,
    graph_of,
    kernels,
    normal_feeds,
)
from tilewright import oracle
from tilewright.graph import Graph

few = settings(deadline=None, max_examples=8)


def with_zeros(*shape: int) -> np.ndarray:
    """Weights of which 60 % are zero, in tiles of four outputs."""
    weight = normal(*shape)
    r = np.random.default_rng(5)
    for first in range(0, shape[0], 4):
        weight[first : first + 4, r.random(shape[1]) < 0.6] = 0
    return weight


@st.composite
def bottlenecks(draw: st.DrawFn) -> Graph:
    batch, inputs, channels = (draw(st.integers(1, n)) for n in (2, 20, 11))
    rows, columns = draw(st.integers(7, 20)), draw(st.integers(7, 20))
    own = draw(st.sampled_from([1, 3]))
    kernel, strides = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    pads = [draw(st.integers(0, kernel - 1)) for _ in range(4)]
    window = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    attributes = f"strides = [{strides}, {strides}], pads = {pads}"
    if window == "Conv":
        second = f"Conv <group = {channels}, {attributes}> (c, u, v)"
    else:
        second = f"{window} <kernel_shape = [{kernel}, {kernel}], {attributes}> (c)"
    weights = draw(st.sampled_from([normal, with_zeros]))
    return graph_of(
        f"g (float[{batch},{inputs},{rows},{columns}] x) => (float[n,m,h,w] y)"
        f" {{ a = Conv <pads = {[own // 2] * 4}> (x, w, b) c = Relu(a) d = {second}"
        " y = Sigmoid(d) }",
        w=weights(channels, inputs, own, own),
        b=normal(channels),
        u=normal(channels, 1, kernel, kernel),
        v=normal(channels),
    )


@every_isa
@few
@given(graph=bottlenecks())
def test_a_window_over_a_layers_planes_agrees(isa: str, graph: Graph) -> None:
    agree(graph, normal_feeds(graph), isa)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5)])
def test_large_maps_in_slices_agree_on_any_threads(
    stride: int, kernel: int, threads: int
) -> None:
    graph = graph_of(
        "g (float[2,5,64,68] x) => (float[2,6,h,w] y) { a = Conv(x, w, b) c = Relu(a)"
        f" y = Conv <group = 6, strides = [{stride}, {stride}],"
        f" pads = {[kernel // 2] * 4}> (c, u, v) }}",
        w=normal(6, 5, 1, 1),
        b=normal(6),
        u=normal(6, 1, kernel, kernel),
        v=normal(6),
    )
    assert kernels(graph) == ["tile_depthwise"]
    feeds = normal_feeds(graph)
    executable, _ = built(graph, threads=threads)
    np.testing.assert_allclose(executable(feeds)["y"], oracle.run(graph, feeds)["y"], *NEAR)


def test_an_inverted_bottleneck_is_two_kernels() -> None:
    graph = graph_of(
        "g (float[1,8,24,24] x) => (float[1,8,24,24] y) { a = Conv(x, w) c = Relu(a)"
        " d = Conv <group = 32, pads = [1, 1, 1, 1]> (c, u) e = Conv(d, z) y = Add(e, x) }",
        w=normal(32, 8, 1, 1),
        u=normal(32, 1, 3, 3),
        z=normal(8, 32, 1, 1),
    )
    assert kernels(graph) == ["tile_depthwise", "tile_positions"]


@pytest.mark.parametrize("reader", ["c", "a"])
def test_planes_that_something_else_reads_are_stored(reader: str) -> None:
    graph = graph_of(
        "g (float[1,8,24,24] x) => (float[1,8,24,24] y, float[1,8,24,24] z) {"
        " a = Conv(x, w) c = Relu(a) y = MaxPool <kernel_shape = [3, 3],"
        f" pads = [1, 1, 1, 1]> (c) z = Neg({reader}) }}",
        w=normal(8, 8, 1, 1),
    )
    assert "tile_max_pool" not in kernels(graph)
    agree(graph, normal_feeds(graph))


def test_a_window_over_some_of_a_layers_channels_runs_by_itself() -> None:
    graph = graph_of(
        "g (float[1,16,24,24] x) => (float[1,4,24,24] y) { a = Conv(x, w)"
        " b = Slice(a, start, end, axis)"
        " y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b) }",
        w=normal(64, 16, 1, 1),
        start=np.array([0]),
        end=np.array([4]),
        axis=np.array([1]),
    )
    assert kernels(graph) == ["tile_positions", "max_pool"]
    agree(graph, normal_feeds(graph))


def test_windows_over_padding_alone_run_by_themselves() -> None:
    graph = graph_of(
        "g (float[1,8,12,12] x) => (float[1,8,1,12] y) { a = Conv(x, w)"
        " y = Conv <group = 8, pads = [3, 0, 0, 0], strides = [20, 1]> (a, u) }",
        w=normal(8, 8, 1, 1),
        u=normal(8, 1, 2, 1),
    )
    assert kernels(graph) == ["tile_positions", "depthwise"]
    agree(graph, normal_feeds(graph))


def test_columns_that_are_far_apart_agree() -> None:
    graph = graph_of(
        "g (float[1,8,9,90] x) => (float[1,8,h,w] y) { a = Conv(x, w)"
        " y = Conv <group = 8, strides = [1, 20]> (a, u) }",
        w=normal(8, 8, 1, 1),
        u=normal(8, 1, 3, 3),
    )
    agree(graph, normal_feeds(graph))
