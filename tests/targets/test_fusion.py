"""Layers whose results a window moves over at once, against onnxruntime."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    NEAR,
    Within,
    agree,
    built,
    cpu,
    every_isa,
    graph_of,
    kernels,
    normal_feeds,
)
from tilewright import oracle
from tilewright.graph import Graph
from tilewright.targets.lower import fusion

few = settings(deadline=None, max_examples=8)


def with_zeros(*shape: int) -> np.ndarray:
    """Weights of which 60 % are zero, in tiles of four outputs."""
    weight = normal(*shape)
    r = np.random.default_rng(5)
    for first in range(0, shape[0], 4):
        weight[first : first + 4, r.random(shape[1]) < 0.6] = 0
    return weight


@st.composite
def bottlenecks(draw: st.DrawFn, projected: bool = False) -> Graph:
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
    end = "y = Sigmoid(d)"
    more = {}
    if projected:
        end = "e = Sigmoid(d) f = Conv(e, z) y = Mul(f, f)"
        more["z"] = weights(draw(st.integers(1, 9)), channels, 1, 1)
    return graph_of(
        f"g (float[{batch},{inputs},{rows},{columns}] x) => (float[n,m,h,w] y)"
        f" {{ a = Conv <pads = {[own // 2] * 4}> (x, w, b) c = Relu(a) d = {second} {end} }}",
        w=weights(channels, inputs, own, own),
        b=normal(channels),
        u=normal(channels, 1, kernel, kernel),
        v=normal(channels),
        **more,
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


def inverted_bottleneck(
    channels: int, rows: int = 24, stride: int = 1, kernel: int = 3, batch: int = 1
) -> Graph:
    pads = [kernel // 2] * 4
    return graph_of(
        f"g (float[{batch},8,{rows},24] x) => (float[{batch},8,h,w] y) {{"
        f" a = Conv(x, w, b) c = Relu(a) d = Conv <group = {channels}, pads = {pads},"
        f" strides = [{stride}, {stride}]> (c, u, v) e = HardSigmoid(d) f = Conv(e, z)"
        f" {'y = Add(f, x)' if stride == 1 else 'y = Tanh(f)'} }}",
        w=with_zeros(channels, 8, 1, 1),
        b=normal(channels),
        u=normal(channels, 1, kernel, kernel),
        v=normal(channels),
        z=with_zeros(8, channels, 1, 1),
    )


def test_an_inverted_bottleneck_is_one_kernel_where_its_planes_are_large() -> None:
    two = cpu(threads=2)
    assert kernels(inverted_bottleneck(64), two) == ["bottleneck"]
    assert kernels(inverted_bottleneck(32), two) == ["tile_depthwise", "tile_positions"]


def test_an_inverted_bottleneck_is_two_kernels_where_cores_outnumber_its_slices() -> None:
    # More than two slices of 12 rows would repeat more than 15 % of the rows.
    assert kernels(inverted_bottleneck(64), cpu(threads=2)) == ["bottleneck"]
    assert "bottleneck" not in kernels(inverted_bottleneck(64), cpu(threads=3))


def test_a_bottleneck_whose_slices_would_leave_the_cache_is_two_kernels() -> None:
    # 37 rows of results, which have no equal slices.
    one = cpu(threads=1)
    assert kernels(inverted_bottleneck(96, rows=73, stride=2), one) == ["bottleneck"]
    assert "bottleneck" not in kernels(inverted_bottleneck(400, rows=73, stride=2), one)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5)])
def test_bottlenecks_agree_on_any_threads(
    stride: int, kernel: int, batch: int, threads: int
) -> None:
    graph = inverted_bottleneck(200, 36, stride, kernel, batch)
    two = cpu(threads=2)
    assert kernels(graph, two) == ["bottleneck"]
    feeds = normal_feeds(graph)
    executable, _ = built(graph, two, threads=threads)
    np.testing.assert_allclose(executable(feeds)["y"], oracle.run(graph, feeds)["y"], *NEAR)


@every_isa
@few
@given(graph=bottlenecks(projected=True))
def test_a_layer_behind_a_window_agrees(isa: str, graph: Graph) -> None:
    with mock.patch.object(fusion, "_LARGE", 0):
        agree(graph, normal_feeds(graph), isa, threads=1)


@pytest.mark.parametrize("reader", ["d", "e"])
def test_results_of_a_window_that_something_else_reads_are_stored(reader: str) -> None:
    graph = graph_of(
        "g (float[1,8,24,24] x) => (float[1,8,24,24] y, float[1,64,24,24] z) {"
        " a = Conv(x, w) c = Relu(a) d = Conv <group = 64, pads = [1, 1, 1, 1]> (c, u)"
        f" e = Relu(d) y = Conv(e, v) z = Neg({reader}) }}",
        w=normal(64, 8, 1, 1),
        u=normal(64, 1, 3, 3),
        v=normal(8, 64, 1, 1),
    )
    assert "bottleneck" not in kernels(graph, cpu(threads=2))
    agree(graph, normal_feeds(graph))


@pytest.mark.parametrize(
    ("first", "expected"), [(0, ["bottleneck"]), (8, ["tile_depthwise", "tile_positions"])]
)
def test_a_layer_that_reads_a_windows_channels_from_a_later_one_on_runs_by_itself(
    first: int, expected: list[str]
) -> None:
    graph = graph_of(
        "g (float[1,8,24,24] x) => (float[1,8,24,24] y) { a = Conv(x, w)"
        " d = Conv <group = 64, pads = [1, 1, 1, 1]> (a, u)"
        " e = Slice(d, start, end, axis) y = Conv(e, v) }",
        w=normal(64, 8, 1, 1),
        u=normal(64, 1, 3, 3),
        v=normal(8, 32, 1, 1),
        start=np.array([first]),
        end=np.array([first + 32]),
        axis=np.array([1]),
    )
    assert kernels(graph, cpu(threads=2)) == expected
    # Sums of some thousands of products of unit normals.
    agree(graph, normal_feeds(graph), within=Within(rtol=1e-5, atol=1e-4))


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
