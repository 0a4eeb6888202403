import errno
import re
from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import correlated, three_layers
from tests.small_models import normal, small_graph
from tilewright import oracle, segments
from tilewright.calibration import Calibration, CrossGram, Gram, Moments, Ranges
from tilewright.columns import choose_positions, columns, position_count
from tilewright.errors import UnusableInput
from tilewright.layers import linear_layers
from tilewright.segments import Pair, Walk

X = gs.Variable("x", np.dtype(np.float32), [1, 3])
IDS = gs.Variable("ids", np.dtype(np.int64), [2])


def test_the_first_axis_of_a_batch_of_one_counts_samples() -> None:
    calibration = Calibration.from_arrays(
        {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, [X]
    )
    assert calibration.samples == 2
    assert [feed["x"].tolist() for feed in calibration.feeds()] == [[[0, 1, 2]], [[3, 4, 5]]]


def test_an_input_without_a_batch_axis_gets_an_axis_of_samples() -> None:
    calibration = Calibration.from_arrays({"ids": np.array([[1, 2], [3, 4]])}, [IDS])
    assert [feed["ids"].tolist() for feed in calibration.feeds()] == [[1, 2], [3, 4]]


def test_feeds_are_taken_as_they_are_and_may_share_memory() -> None:
    shared = np.arange(9, dtype=np.float32).reshape(1, 9)
    feeds = [{"x": shared[:, i : i + 3], "ids": np.array([i, i])} for i in range(6)]
    taken = list(Calibration.from_feeds(feeds, [X, IDS]).feeds())
    assert [feed["x"].tolist() for feed in taken] == [[[i, i + 1, i + 2]] for i in range(6)]
    assert [feed["ids"].tolist() for feed in taken] == [[i, i] for i in range(6)]
    assert all(np.shares_memory(feed["x"], shared) for feed in taken)


def test_arrays_are_not_taken_before_they_are_cut_into_feeds() -> None:
    arrays = {"x": np.ones((2, 3), np.float32)}
    with pytest.raises(UnusableInput, match=r"Give Calibration.from_arrays\(arrays, graph.in"):
        Calibration(arrays)  # type: ignore[arg-type]


def test_a_graph_is_not_taken_for_its_inputs() -> None:
    graph = small_graph("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    arrays = {"x": np.ones((2, 3), np.float32)}
    wanted = r"a Graph is given for them. Give graph.inputs"
    with pytest.raises(UnusableInput, match=wanted):
        Calibration.from_arrays(arrays, graph)  # type: ignore[arg-type]
    with pytest.raises(UnusableInput, match=wanted):
        Calibration.from_feeds([arrays], graph)  # type: ignore[arg-type]
    assert Calibration.from_arrays(arrays, graph.inputs).samples == 2


@pytest.mark.parametrize("shape", [(1, 2), (1, 4), (2, 3), (3,)])
def test_a_feed_is_one_inference_of_the_inputs_shape(shape: tuple[int, ...]) -> None:
    feeds: list[dict[str, np.ndarray]] = [
        {"x": np.ones(each, np.float32)} for each in ((1, 3), shape)
    ]
    with pytest.raises(UnusableInput, match=re.escape(f'"x" has shape {shape}')):
        Calibration.from_feeds(feeds, [X])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "no samples"),
        ([{"y": np.ones((1, 3))}], 'no array for input "x"'),
        ([{"x": np.ones((1, 3), np.int8)}], '"x" is int8'),
        ([{"x": np.full((1, 3), np.nan)}], "3 values that are NaN or Inf"),
    ],
)
def test_feeds_that_do_not_fit_are_one_message(
    feeds: list[Mapping[str, np.ndarray]], message: str
) -> None:
    with pytest.raises(UnusableInput, match=message):
        Calibration.from_feeds(feeds, [X])


def test_feeds_are_read_only() -> None:
    calibration = Calibration.from_arrays({"x": np.ones((1, 3), np.float32)}, [X])
    with pytest.raises(ValueError, match="read-only"):
        next(calibration.feeds())["x"][:] = 0


def test_wide_floats_and_narrow_integers_are_converted() -> None:
    arrays: dict[str, np.ndarray] = {"x": np.ones((1, 3)), "ids": np.ones((1, 2), np.int32)}
    feed = next(Calibration.from_arrays(arrays, [X, IDS]).feeds())
    assert [feed[name].dtype.name for name in ("x", "ids")] == ["float32", "int64"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, 'no array for input "x"; it holds nothing'),
        ({"y": np.ones((1, 3))}, 'no array for input "x"; it holds "y"'),
        ({"x": np.ones((1, 3)), "y": np.ones(1)}, '"y", which the model does not read'),
        ({"x": np.ones((2, 4))}, r'"x" has shape \(2, 4\), but the model reads \(samples, 3\)'),
        ({"x": np.array(1.0)}, r'"x" has shape \(\)'),
        ({"x": np.ones((2, 3), np.int8)}, '"x" is int8, but the model reads float32'),
        ({"x": np.ones((0, 3))}, "no samples"),
        (
            {"x": np.array([[1, np.nan, np.inf]])},
            '"x" holds 2 values that are NaN or Inf, of 3',
        ),
        ({"x": np.full((1, 3), 1e300)}, "NaN or Inf"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(UnusableInput, match=message):
        Calibration.from_arrays(arrays, [X])


def test_arrays_of_different_lengths_are_refused() -> None:
    arrays = {"x": np.ones((3, 3)), "ids": np.ones((2, 2), np.int64)}
    with pytest.raises(UnusableInput, match='"x" has 3, "ids" has 2'):
        Calibration.from_arrays(arrays, [X, IDS])


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_statistics_of_pieces_are_those_of_the_whole(sizes: list[int], features: int) -> None:
    r = np.random.default_rng(0)
    pieces = [r.normal(5, 2, (features, size)).astype(np.float32) for size in [*sizes, 1]]
    others = [r.normal(size=(3, piece.shape[1])).astype(np.float32) for piece in pieces]
    gram, cross, moments, ranges = Gram(), CrossGram(), Moments(), Ranges()
    for x, y in zip(pieces, others, strict=True):
        gram.add(x)
        cross.add(x, y)
        moments.add(x)
        ranges.add(x)
    x = np.concatenate(pieces, axis=1).astype(np.float64)
    y = np.concatenate(others, axis=1).astype(np.float64)
    # Products are in float32, of at most 201 terms.
    np.testing.assert_allclose(gram.product, x @ x.T, rtol=1e-5)
    np.testing.assert_allclose(gram.sums, x.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(cross.product, x @ y.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(moments.mean, x.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, x.var(axis=1), rtol=1e-9, atol=1e-12)
    assert (ranges.low == x.min(axis=1)).all()
    assert (ranges.high == x.max(axis=1)).all()
    assert gram.columns == moments.columns == x.shape[1]


def test_variance_survives_a_large_mean() -> None:
    moments = Moments()
    for values in ([1e8, 1e8 + 2], [1e8 + 4]):
        moments.add(np.array([values]))
    assert moments.variance[0] == pytest.approx(8 / 3, rel=1e-9)


@given(
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 1)),
    padding=st.sampled_from(
        ["pads=[1,0,2,1]", 'auto_pad="SAME_UPPER"', 'auto_pad="VALID"', ""]
    ),
    channels=st.integers(1, 3),
)
@settings(deadline=None, max_examples=40)
def test_weights_times_columns_is_the_convolution(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: str,
    channels: int,
) -> None:
    if "auto_pad" in padding and dilations != (1, 1):
        dilations = (1, 1)  # onnxruntime has no such kernel
    if dilations[0] * (kernel[0] - 1) >= size[0]:
        kernel = (1, kernel[1])
    attributes = [f"strides={list(strides)}", f"dilations={list(dilations)}", padding]
    text = (
        f"g (float[1,{channels},{size[0]},{size[1]}] x) => (float[N,5,H,W] y) "
        f"{{ y = Conv <{', '.join(a for a in attributes if a)}> (x, w) }}"
    )
    g = small_graph(text, w=normal(5, channels, *kernel))
    layer = next(linear_layers(g))
    x = normal(1, channels, *size, seed=3)
    everything = np.arange(position_count(layer.node, x))
    product = layer.matrix() @ columns(layer.node, x, everything)
    expected = oracle.run(g, {"x": x})["y"]
    np.testing.assert_allclose(product, expected.reshape(5, -1), rtol=1e-4, atol=1e-5)


def test_same_lower_puts_the_odd_padding_first() -> None:
    text = 'g (float[1,1,4] x) => (float[1,1,4] y) { y = Conv <auto_pad="SAME_LOWER"> (x, w) }'
    g = small_graph(text, w=np.ones((1, 1, 2), np.float32))
    x = np.array([[[1, 2, 3, 4]]], np.float32)
    assert columns(g.nodes[0], x, np.arange(4)).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_padding_tokens_are_not_chosen() -> None:
    g = three_layers()
    x = normal(1, 16, 12)
    mask = (np.arange(16) < 5).astype(np.int64)[None]
    r = np.random.default_rng(0)
    chosen = choose_positions(g.nodes[0], x, {"attention_mask": mask}, 100, r)
    assert chosen.tolist() == [0, 1, 2, 3, 4]


def test_positions_of_large_inputs_are_a_seeded_choice() -> None:
    g = three_layers()
    x = normal(1, 16, 12)
    one, two = (
        choose_positions(g.nodes[0], x, {}, 6, np.random.default_rng(7)).tolist() for _ in "ab"
    )
    assert one == two
    assert len(set(one)) == 6
    assert one == sorted(one)


def whole_run(samples: np.ndarray) -> tuple[Calibration, list[np.ndarray]]:
    g = three_layers()
    calibration = Calibration.from_arrays({"x": samples}, g.inputs)
    watched = three_layers()
    watched.gs.outputs.append(watched.gs.tensors()["s"])
    return calibration, [oracle.run(watched, feed)["s"] for feed in calibration.feeds()]


@pytest.mark.parametrize("budget_bytes", [0, 3000, 1 << 30])
def test_segments_give_the_activations_of_one_whole_run(budget_bytes: int) -> None:
    calibration, expected = whole_run(correlated(5, 16, 12))
    g = three_layers()
    walk = Walk(calibration, budget_bytes)
    for cut in (1, 3, 6):
        walk.advance(g, cut)
    found = list(walk.values("s"))
    # A segment boundary may undo a fusion: a few units in the last place.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # 5 samples of 16 x 8 float32 are 2,560 bytes.
    assert bool(walk._stacks) == (budget_bytes == 0)


def test_activations_that_the_disk_has_no_room_for_are_one_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    calibration, _ = whole_run(correlated(5, 16, 12))
    with pytest.raises(UnusableInput, match=r"no room for .* MB of activations: No space"):
        Walk(calibration, budget_bytes=0).advance(three_layers(), 1)


def test_only_what_is_read_later_is_held() -> None:
    calibration, _ = whole_run(correlated(2, 16, 12))
    walk = Walk(calibration)
    walk.advance(three_layers(), 4)
    assert [sorted(frontier) for frontier in walk._frontiers] == [["c"], ["c"]]


def test_the_compressed_network_reads_what_its_earlier_layers_now_give() -> None:
    dense = three_layers()
    compressed = dense.edit()
    calibration, expected = whole_run(correlated(3, 16, 12))
    pair = Pair(calibration, dense)
    first, _, last = linear_layers(compressed)
    list(pair.columns(first, compressed))
    first.replace(np.zeros((20, 12)))
    found = list(pair.columns(last, compressed))
    biases = dense.constants()
    row = np.tanh(np.maximum(biases["b1"], 0) @ biases["w2"] + biases["b2"])
    for (x, x_now, _), whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, whole[0].T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x_now, np.tile(row, (16, 1)).T, rtol=1e-5, atol=1e-6)


def test_a_segment_with_an_if_takes_what_its_branches_read() -> None:
    text = """g (float[1,4] x, bool flag) => (float[1,4] y) {
        a = Relu(x)  b = Neg(x)  c = MatMul(b, w)
        d = If (flag) <
            then_branch = t () => (float[1,4] p) { p = Add(a, c) },
            else_branch = e () => (float[1,4] q) { q = Sub(a, c) } >
        y = MatMul(d, w2)
    }"""
    g = small_graph(text, w=normal(4, 4), w2=normal(4, 4, seed=1))
    arrays = {"x": normal(3, 4, seed=2), "flag": np.array([True, False, True])}
    calibration = Calibration.from_arrays(arrays, g.inputs)
    walk = Walk(calibration)
    assert segments.reads(g.nodes[3]) == {"flag", "a", "c"}
    for cut in range(1, 5):
        walk.advance(g, cut)
    for feed, found in zip(calibration.feeds(), walk.values("d"), strict=True):
        a, c = np.maximum(feed["x"], 0), -feed["x"] @ g.constants()["w"]
        expected = a + c if feed["flag"] else a - c
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_values_of_another_byte_order_are_turned() -> None:
    arrays = {"x": np.arange(3, dtype=">f4").reshape(1, 3)}
    feed = next(Calibration.from_arrays(arrays, [X]).feeds())
    assert feed["x"].dtype == np.float32
    assert feed["x"].tolist() == [[0, 1, 2]]


def test_products_that_overflow_are_one_message() -> None:
    gram = Gram()
    gram.add(np.full((2, 3), 1e30, np.float32))
    with pytest.raises(UnusableInput, match="products overflow"):
        _ = gram.product


def test_held_out_samples_are_not_among_the_others() -> None:
    graph = three_layers()
    x = correlated(10, 16, 12)
    rest, held = Calibration.from_arrays({"x": x}, graph.inputs).held_out(4)
    assert (rest.samples, held.samples) == (8, 2)
    np.testing.assert_array_equal([f["x"][0] for f in held.feeds()], x[[3, 7]])
    np.testing.assert_array_equal(
        [f["x"][0] for f in rest.feeds()], x[[0, 1, 2, 4, 5, 6, 8, 9]]
    )


def test_of_one_sample_both_parts_are_it() -> None:
    alone = Calibration.from_arrays({"x": correlated(1, 16, 12)}, three_layers().inputs)
    assert [part.samples for part in alone.held_out(4)] == [1, 1]
