"""The quantize pass: what it writes around layers, on which ranges, what it leaves alone."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_model
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.passes.quantize.static import Quantize
from tilewright.plan import Plan
from tilewright.protocol import Context, Outcome

SIBLINGS = """g (float[1,6] x) => (float[1,4] y, float[1,3] z) {
    y = MatMul(x, w)  z = Gemm <transB = 1> (x, v)
}"""


def siblings(**weights: np.ndarray) -> Graph:
    given = {"w": normal(6, 4), "v": normal(3, 6, seed=1), **weights}
    return Graph.from_onnx(small_model(SIBLINGS, 17, **given)).infer_shapes()


def quantized(graph: Graph, x: np.ndarray, quantize: Quantize | None = None) -> Outcome:
    name = graph.inputs[0].name
    calibration = Calibration.from_arrays({name: x.astype(np.float32)}, graph.inputs)
    return (quantize or Quantize())(graph, Context(DEVICE, calibration))


def constants_of(node: gs.Node) -> list[np.ndarray]:
    return [t.values for t in node.inputs if isinstance(t, gs.Constant)]


def node(graph: Graph, name: str) -> gs.Node:
    return next(n for n in graph.nodes if n.name == name)


def test_weights_are_int8_to_the_nearest_step_of_their_own_channel() -> None:
    w = normal(6, 4) * np.array([1, 100, 1e-3, 0], np.float32)
    graph = quantized(siblings(w=w), normal(9, 6)).graph
    integers, scales, zeros = constants_of(node(graph, "w/dequantize"))
    assert integers.dtype == np.int8
    np.testing.assert_allclose(scales[:3], np.abs(w).max(axis=0)[:3] / 127, rtol=1e-6)
    assert not zeros.any()
    assert np.abs(integers).max(axis=0).tolist() == [127, 127, 127, 0]
    assert (np.abs(integers * scales - w) <= scales / 2 * (1 + 1e-5)).all()


def test_a_transposed_convolution_has_scales_by_output_channel() -> None:
    w = normal(3, 5, 2, 2) * np.arange(5, dtype=np.float32).reshape(5, 1, 1)
    model = small_model(
        "g (float[1,3,4,4] x) => (float[1,5,5,5] y) { y = ConvTranspose(x, w) }", w=w
    )
    graph = Graph.from_onnx(model).infer_shapes()
    found = quantized(graph, normal(2, 3, 4, 4))
    integers, scales, _ = constants_of(node(found.graph, "w/dequantize"))
    most = np.abs(w).max(axis=(0, 2, 3))
    np.testing.assert_allclose(scales[1:], most[1:] / 127, rtol=1e-6)
    back = integers * scales.reshape(1, 5, 1, 1)
    assert (np.abs(back - w) <= scales.reshape(5, 1, 1) / 2 * (1 + 1e-5)).all()
    assert found.notes == ()


def test_a_grouped_transposed_convolution_is_left_alone_with_a_note() -> None:
    text = "g (float[1,4,4,4] x) => (float[1,6,5,5] y) { y = ConvTranspose <group = 2> (x, w) }"
    graph = Graph.from_onnx(small_model(text, w=normal(4, 3, 2, 2))).infer_shapes()
    (note,) = quantized(graph, normal(2, 4, 4, 4)).notes
    assert note.reason == "not quantized: its convolution is grouped"


def test_weights_alone_of_a_transposed_convolution_are_not_quantized() -> None:
    text = "g (float[1,3,4,4] x) => (float[1,5,5,5] y) { y = ConvTranspose(x, w) }"
    graph = Graph.from_onnx(small_model(text, w=normal(3, 5, 2, 2))).infer_shapes()
    found = Quantize(activations=False)(graph, Context(DEVICE, None)).graph
    assert [n.op for n in found.nodes] == ["ConvTranspose"]


def test_pruned_weights_stay_zero() -> None:
    w = normal(6, 4)
    w[::2] = 0
    graph = quantized(siblings(w=w), normal(9, 6)).graph
    assert not constants_of(node(graph, "w/dequantize"))[0][::2].any()


def test_activations_span_what_calibration_saw_and_zero() -> None:
    x = np.linspace(2.0, 10.0, 60).reshape(10, 6)
    graph = quantized(siblings(), x).graph
    scale, zero = constants_of(node(graph, "x/quantize"))
    assert (zero.dtype.name, zero.item()) == ("uint8", 0)
    np.testing.assert_allclose(scale, 10 / 255, rtol=1e-6)
    scale, zero = constants_of(node(quantized(siblings(), -x).graph, "x/quantize"))
    assert zero.item() == 255
    np.testing.assert_allclose(scale, 10 / 255, rtol=1e-6)


def test_a_percentile_leaves_out_what_is_rare() -> None:
    x = normal(200, 6)
    x[7, 3] = 1000
    wide = constants_of(node(quantized(siblings(), x).graph, "x/quantize"))[0]
    narrow = Quantize(range="percentile", percentile=99.0)
    kept = constants_of(node(quantized(siblings(), x, narrow).graph, "x/quantize"))[0]
    # Ends of six values each, averaged over 200 samples, of which one is far off.
    assert kept * 10 < wide


def test_siblings_share_one_quantized_tensor() -> None:
    graph = quantized(siblings(), normal(5, 6)).graph
    ops = [n.op for n in graph.nodes]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear")) == (1, 3)
    assert node(graph, "MatMul_0").inputs[0] is node(graph, "Gemm_1").inputs[0]


def test_answers_are_off_by_a_few_steps_at_most() -> None:
    graph = siblings()
    x = normal(40, 6)
    outcome = quantized(graph, x)
    for sample in range(5):
        feeds = {"x": x[sample : sample + 1]}
        dense, small = oracle.run(graph, feeds), oracle.run(outcome.graph, feeds)
        for name, weights in (("y", normal(6, 4)), ("z", normal(3, 6, seed=1).T)):
            # Six products, each off by half a step of either factor.
            step_x, step_w = np.ptp(x) / 255, np.abs(weights).max() / 127
            bound = 3 * (step_x * np.abs(weights).max() + step_w * np.abs(x).max())
            assert np.abs(dense[name] - small[name]).max() < bound


def test_layers_stay_known_as_layers_and_are_not_quantized_twice() -> None:
    graph = quantized(siblings(), normal(5, 6)).graph
    assert [(layer.name, layer.is_quantized) for layer in linear_layers(graph)] == [
        ("MatMul_0", True),
        ("Gemm_1", True),
    ]
    again = quantized(graph, normal(5, 6))
    assert [note.reason for note in again.notes] == [
        "not quantized: it is quantized already"
    ] * 2


def test_quantized_weights_are_not_pruned() -> None:
    graph = quantized(siblings(), normal(5, 6)).graph
    outcome = PruneTiles(sparsity=0.5, ends=True, smallest=1)(graph, Context(DEVICE))
    assert [note.reason.partition(";")[0] for note in outcome.notes] == [
        "its weights are quantized"
    ] * 2
    plan = Plan({"MatMul_0": {"sparsity": 0.5, "tile": "4x1"}})
    with pytest.raises(UnusableInput, match="prune before quantizing"):
        PruneTiles()(graph, Context(DEVICE, plan=plan))


def test_names_that_are_taken_are_not_taken_again() -> None:
    text = """g (float[1,6] x) => (float[1,4] y, float[1,6] z) {
        y = MatMul(x, w)  t = Identity(x)  z = Mul(x, other)
    }"""
    model = small_model(text, 17, w=normal(6, 4))
    scale = onnx.numpy_helper.from_array(np.array(7.0, np.float32), "x/scale")
    model.graph.initializer.append(scale)
    model.graph.node[2].input[1] = "x/scale"
    graph = Graph.from_onnx(model).infer_shapes()
    feeds = {"x": normal(1, 6)}
    small = oracle.run(quantized(graph, normal(5, 6)).graph, feeds)
    np.testing.assert_allclose(small["z"], 7 * feeds["x"], rtol=1e-6)
    np.testing.assert_allclose(small["y"], oracle.run(graph, feeds)["y"], atol=0.1)


def test_what_is_left_alone_is_noted_with_the_reason() -> None:
    text = """g (float[1,4,5,5] x) => (float[1,4,5,5] y, float[4,1,3,3] v) {
        a = Conv <group = 4, pads = [1, 1, 1, 1]> (x, w)
        b = Conv (a, u)  y = Conv <pads = [1, 1, 1, 1], group = 4> (b, w)  v = Identity(w)
    }"""
    graph = Graph.from_onnx(small_model(text, 17, w=normal(4, 1, 3, 3), u=normal(4, 4, 1, 1)))
    outcome = quantized(graph.infer_shapes(), normal(3, 4, 5, 5), Quantize(skip=("Conv_1",)))
    assert {n.node: n.reason for n in outcome.notes} == {
        "Conv_0": "not quantized: its convolution is grouped",
        "Conv_1": "not quantized: it is named in skip",
        "Conv_2": "not quantized: its convolution is grouped",
    }


def test_older_models_are_brought_to_an_opset_that_has_scales_by_channel() -> None:
    text = "g (float[1,6] x) => (float[1,4] y) { r = Relu(x) s = Squeeze <axes = [0]> (r)"
    text += " u = Unsqueeze <axes = [0]> (s) y = MatMul(u, w) }"
    graph = Graph.from_onnx(small_model(text, 11, w=normal(6, 4))).infer_shapes()
    outcome = quantized(graph, normal(5, 6))
    assert outcome.graph.opset >= 13
    feeds = {"x": normal(1, 6)}
    dense, small = oracle.run(graph, feeds)["y"], oracle.run(outcome.graph, feeds)["y"]
    np.testing.assert_allclose(small, dense, atol=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"range": "best"}, "one of minmax, percentile"),
        ({"percentile": 12.0}, "above 50"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        Quantize(**options)  # type: ignore[arg-type]


def test_without_calibration_data_there_are_no_ranges() -> None:
    with pytest.raises(UnusableInput, match="--calibration"):
        Quantize()(siblings(), Context(DEVICE))


def test_activations_that_are_not_finite_are_refused() -> None:
    text = "g (float[1,6] x) => (float[1,4] y) { l = Log(x) y = MatMul(l, w) }"
    graph = Graph.from_onnx(small_model(text, 17, w=normal(6, 4))).infer_shapes()
    with pytest.raises(UnusableInput, match='"l", which MatMul_1 reads, is NaN or infinite'):
        quantized(graph, -np.ones((2, 6)))
