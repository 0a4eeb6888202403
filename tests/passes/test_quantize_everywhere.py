"""quantize{everywhere=true}: which tensors become integers, on which ranges."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layer_norms import recognize_layer_norms
from tilewright.passes.quantize.ranges import Rule
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Context, Outcome


def quantized(
    graph: Graph, *arrays: np.ndarray, skip: tuple[str, ...] = (), kind: str = "minmax"
) -> Outcome:
    given = {t.name: x for t, x in zip(graph.inputs, arrays, strict=True)}
    calibration = Calibration.from_arrays(given, graph.inputs)
    chosen = Quantize(everywhere=True, skip=skip, range=kind)
    return chosen(graph, Context(DEVICE, calibration))


def stems(graph: Graph) -> set[str]:
    """Return the tensors that are quantized, by the names that they had before."""
    names = (str(n.inputs[0].name) for n in graph.nodes if n.op == "QuantizeLinear")
    return {name.removesuffix("/float") for name in names}


def step(graph: Graph, tensor: str) -> tuple[float, int]:
    """Return scale and zero point of a quantized tensor."""
    named = (n for n in graph.nodes if n.op == "QuantizeLinear")
    (node,) = [n for n in named if n.inputs[0].name.removesuffix("/float") == tensor]
    return node.inputs[1].values.item(), int(node.inputs[2].values.item())


def test_a_layer_its_bias_and_a_clamp_are_rounded_once() -> None:
    graph = small_graph(
        """g (float[1,4,6,6] x) => (float[1,3,6,6] y) {
            a = Conv(x, u) b = Add(a, c) r = Relu(b) d = Conv(r, w) y = Clip(d, low, high)
        }""",
        u=normal(5, 4, 1, 1),
        c=normal(5, 1, 1),
        w=normal(3, 5, 1, 1),
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
    )
    outcome = quantized(graph, normal(4, 4, 6, 6))
    assert stems(outcome.graph) == {"x", "r", "y"}
    assert outcome.notes == ()
    assert [t.name for t in outcome.graph.outputs] == ["y"]


def test_a_function_of_single_numbers_is_one_whatever_it_is_made_of() -> None:
    graph = small_graph(
        """g (float[1,4] x) => (float[1,4] y) {
            a = MatMul(x, w) s = Add(a, three) c = Clip(s, zero, six) m = Mul(a, c)
            h = Div(m, six) y = MatMul(h, w2)
        }""",
        w=normal(4, 4),
        w2=normal(4, 4, seed=1),
        three=np.array(3, np.float32),
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )
    assert stems(quantized(graph, normal(9, 4)).graph) == {"x", "a", "h", "y"}


def test_depthwise_convolutions_have_a_scale_a_channel() -> None:
    text = "g (float[1,4,5,5] x) => (float[1,4,3,3] y) { y = Conv<group=4>(x, w) }"
    w = normal(4, 1, 3, 3) * np.array([1, 10, 100, 1000], np.float32).reshape(4, 1, 1, 1)
    outcome = quantized(small_graph(text, w=w), normal(4, 4, 5, 5))
    (node,) = [n for n in outcome.graph.nodes if n.name == "w/dequantize"]
    np.testing.assert_allclose(
        node.inputs[1].values, np.abs(w).max(axis=(1, 2, 3)) / 127, rtol=1e-6
    )


def test_what_is_put_side_by_side_shares_the_scale_of_the_whole() -> None:
    graph = small_graph(
        """g (float[1,4] x) => (float[1,8] y) {
            a = MatMul(x, u) b = MatMul(x, w) c = Concat<axis=1>(a, b) y = MatMul(c, v)
        }""",
        u=normal(4, 4),
        w=100 * normal(4, 4, seed=1),
        v=normal(8, 8),
    )
    found = quantized(graph, normal(9, 4)).graph
    assert step(found, "a") == step(found, "b") == step(found, "c")
    x = normal(9, 4)
    largest = np.ptp(x @ (100 * normal(4, 4, seed=1)))
    assert step(found, "c")[0] == pytest.approx(largest / 255, rel=0.1)


def test_a_pool_of_largest_values_has_the_range_of_what_comes_out() -> None:
    graph = small_graph(
        """g (float[1,1,4,4] x) => (float[1,1,2,2] y) {
            a = Conv(x, w) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) y = Conv(p, w2)
        }""",
        w=np.ones((1, 1, 1, 1), np.float32),
        w2=np.ones((1, 1, 1, 1), np.float32),
    )
    # In each window there is a 2: the -50 beside it never counts.
    x = np.tile(np.array([[2, -50], [0, 1]], np.float32), (3, 1, 2, 2))
    found = quantized(graph, x).graph
    assert step(found, "a") == step(found, "p")
    scale, zero = step(found, "p")
    assert zero == 0
    assert scale == pytest.approx(2 / 255)


def test_a_mask_of_huge_numbers_leaves_the_scores_their_steps() -> None:
    graph = small_graph(
        """g (float[1,4,8] x, float[1,1,4] m) => (float[1,4,8] y) {
            q = MatMul(x, w) k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k)
            n = Mul(m, huge) t = Add(s, n) p = Softmax<axis=-1>(t) y = MatMul(p, q)
        }""",
        w=normal(8, 8) / 3,
        huge=np.array(-1e9, np.float32),
    )
    x, m = normal(6, 4, 8), np.zeros((6, 1, 4), np.float32)
    m[:, :, 3] = 1
    outcome = quantized(graph, x, m)
    assert step(outcome.graph, "t")[0] < 0.3
    assert step(outcome.graph, "n")[0] < 0.5
    feeds = {"x": x[:1], "m": m[:1]}
    dense, small = oracle.run(graph, feeds)["y"], oracle.run(outcome.graph, feeds)["y"]
    assert np.corrcoef(dense.ravel(), small.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["minmax", "percentile"])
def test_a_mask_of_minus_infinity_is_as_low_as_it_needs_to_be(kind: str) -> None:
    graph = small_graph(
        """g (float[1,4,8] x, float[1,1,4] m) => (float[1,4,8] y) {
            q = MatMul(x, w) k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k)
            c = Greater(m, half) n = Where(c, lowest, zero) t = Add(s, n)
            p = Softmax<axis=-1>(t) y = MatMul(p, q)
        }""",
        w=normal(8, 8) / 3,
        half=np.array(0.5, np.float32),
        lowest=np.array(-np.inf, np.float32),
        zero=np.array(0, np.float32),
    )
    x, m = normal(6, 4, 8), np.zeros((6, 1, 4), np.float32)
    m[:, :, 3] = 1
    outcome = quantized(graph, x, m, kind=kind)
    assert "n" in stems(outcome.graph)
    assert step(outcome.graph, "t")[0] < 0.3
    feeds = {"x": x[:1], "m": m[:1]}
    dense, small = oracle.run(graph, feeds)["y"], oracle.run(outcome.graph, feeds)["y"]
    assert np.corrcoef(dense.ravel(), small.ravel())[0, 1] > 0.99


def test_padding_of_minus_infinity_leaves_a_pool_its_steps() -> None:
    graph = small_graph(
        """g (float[1,4,6,6] x) => (float[1,4,4,4] y) {
            a = Conv(x, w) p = Pad(a, around, lowest)
            m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(p) y = Conv(m, w2)
        }""",
        w=normal(4, 4, 1, 1),
        w2=normal(4, 4, 1, 1, seed=1),
        around=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        lowest=np.array(-np.inf, np.float32),
    )
    x = normal(5, 4, 6, 6)
    found = quantized(graph, x).graph
    assert step(found, "a") == step(found, "p") == step(found, "m")
    feeds = {"x": x[:1]}
    dense, small = oracle.run(graph, feeds)["y"], oracle.run(found, feeds)["y"]
    # Four roundings on the way, each of half a step of what is there.
    assert np.abs(dense - small).max() < 0.05 * np.abs(dense).max()


def test_a_percentile_sees_every_channel_wherever_channels_are() -> None:
    x = normal(1, 64, 64, 32)
    x[..., 1::2] *= 100
    low, high = Rule("percentile", 99.0).ends(x)
    # The share of 2 ** 16 values beyond the true end is 1 % to within a twentieth of that.
    assert [low, high] == pytest.approx(np.percentile(x, [1, 99]), rel=0.05)


def test_copies_along_an_axis_stay_in_floats() -> None:
    text = "g (float[1,4] x) => (float[6,4] y) { a = MatMul(x, w) y = Expand(a, wide) }"
    graph = small_graph(text, w=normal(4, 4), wide=np.array([6, 4]))
    assert stems(quantized(graph, normal(9, 4)).graph) == {"x", "a"}


def test_what_no_product_of_tensors_is_connected_with_stays_in_floats() -> None:
    graph = small_graph(
        """g (float[1,4] x, float[1,4] z) => (float[1,4] y, float[1,4] v) {
            y = MatMul(x, w) e = Exp(z) v = Tanh(e)
        }""",
        w=normal(4, 4),
    )
    assert stems(quantized(graph, normal(5, 4), normal(5, 4)).graph) == {"x", "y"}


def test_a_residual_stream_around_a_float_normalization_stays_in_floats() -> None:
    graph = small_graph(
        """g (float[1,3,4] x) => (float[1,3,4] y) {
            n = LayerNormalization(x, ones, zeros) a = MatMul(n, w) s = Add(a, n)
            y = LayerNormalization(s, ones, zeros)
        }""",
        w=normal(4, 4),
        ones=np.ones(4, np.float32),
        zeros=np.zeros(4, np.float32),
    )
    found = quantized(graph, normal(5, 3, 4)).graph
    assert stems(found) == {"n", "a"}
    (add,) = [n for n in found.nodes if n.op == "Add"]
    assert [t.name for t in add.inputs] == ["a", "n"]


def test_layers_named_in_skip_keep_floats_on_both_sides() -> None:
    graph = small_graph(
        "g (float[1,4] x) => (float[1,4] y) { a = MatMul(x, u) y = MatMul(a, w) }",
        u=normal(4, 4),
        w=normal(4, 4, seed=1),
    )
    first, last = (n.name for n in graph.nodes)
    outcome = quantized(graph, normal(9, 4), skip=(last,))
    assert stems(outcome.graph) == {"x", "a"}
    assert {n.node: n.reason for n in outcome.notes} == {
        last: "not quantized: it is named in skip"
    }
    (kept,) = [n for n in outcome.graph.nodes if n.name == last]
    assert isinstance(kept.inputs[1], gs.Constant)
    assert first != last


def test_answers_are_those_of_the_dense_network_but_for_some_steps() -> None:
    graph = small_graph(
        """g (float[1,3,8,8] x) => (float[1,5] y) {
            a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, u) r = Relu(a)
            b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(r, w) s = Add(r, b)
            p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, v)
        }""",
        u=normal(6, 3, 3, 3) / 5,
        w=normal(6, 6, 3, 3, seed=1) / 7,
        v=normal(6, 5, seed=2),
    )
    x = normal(16, 3, 8, 8)
    outcome = quantized(graph, x)
    for index in range(4):
        feeds = {"x": x[index : index + 1]}
        dense, small = oracle.run(graph, feeds)["y"], oracle.run(outcome.graph, feeds)["y"]
        # Five roundings on the way, each of half a step of what is there.
        assert np.abs(dense - small).max() < 0.05 * np.abs(dense).max()


def test_it_needs_activations() -> None:
    with pytest.raises(UnusableInput, match="everywhere"):
        Quantize(activations=False, everywhere=True)


def test_activations_that_are_not_finite_are_refused() -> None:
    text = (
        "g (float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) l = Log(a) y = MatMul(l, w2) }"
    )
    graph = small_graph(text, w=normal(4, 4), w2=normal(4, 4))
    with pytest.raises(UnusableInput, match=r"is NaN or infinite on the calibration data"):
        quantized(graph, normal(3, 4))


def test_a_spelled_out_normalization_stays_in_floats_as_one_operator() -> None:
    graph = small_graph(
        """g (float[1,3,8] x) => (float[1,3,8] y) {
            a = MatMul(x, u) m = ReduceMean<axes=[-1]>(a) c = Sub(a, m) p = Pow(c, two)
            v = ReduceMean<axes=[-1]>(p) e = Add(v, tiny) r = Sqrt(e) d = Div(c, r)
            s = Mul(d, gain) n = Add(s, shift) y = MatMul(n, w)
        }""",
        u=normal(8, 8),
        w=normal(8, 8, seed=1),
        two=np.array(2, np.float32),
        tiny=np.array(1e-5, np.float32),
        gain=normal(8, seed=2),
        shift=normal(8, seed=3),
    )
    x = normal(6, 3, 8)
    found = quantized(graph, x).graph
    assert stems(found) == {"x", "a", "n", "y"}
    assert [n.op for n in found.nodes if "Linear" not in n.op] == [
        "MatMul",
        "LayerNormalization",
        "MatMul",
    ]
    feeds = {"x": x[:1]}
    dense, small = oracle.run(graph, feeds)["y"], oracle.run(found, feeds)["y"]
    assert np.abs(dense - small).max() < 0.05 * np.abs(dense).max()


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8), (1, 1, 1, 8)])
def test_a_normalization_that_adds_axes_is_none(shape: tuple[int, ...]) -> None:
    graph = small_graph(
        """g (float[1,3,8] x) => (float[] y) {
            m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) p = Pow(c, two)
            v = ReduceMean<axes=[-1]>(p) e = Add(v, tiny) r = Sqrt(e) d = Div(c, r)
            s = Mul(d, gain) y = Add(s, shift)
        }""",
        two=np.array(2, np.float32),
        tiny=np.array(1e-5, np.float32),
        gain=normal(8),
        shift=normal(*shape),
    )
    whole = [n.op for n in recognize_layer_norms(graph).nodes] == ["LayerNormalization"]
    assert whole == (len(shape) <= 3)
