"""The quantize-blocks pass: which layers become MatMulNBits, and what that costs."""

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph, small_model
from tilewright import oracle
from tilewright.cost import node_costs, parameter_counts
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.nbits import in_blocks
from tilewright.passes.quantize.blocks import QuantizeBlocks
from tilewright.protocol import Context, Outcome

TEXT = """g (float[3,64] x) => (float[3,10] y) {
    a = MatMul(x, w) b = Relu(a) y = Gemm <beta = 2.0> (b, v, c)
}"""


def quantized(graph: Graph, **options: object) -> Outcome:
    return QuantizeBlocks(**options)(graph, Context(DEVICE))  # type: ignore[arg-type]


def model(w: np.ndarray | None = None) -> Graph:
    own = normal(64, 40) if w is None else w
    return small_graph(TEXT, w=own, v=normal(40, 10), c=normal(10))


def test_a_matmul_becomes_matmulnbits_and_a_gemm_with_factors_stays() -> None:
    outcome = quantized(model())
    assert [node.op for node in outcome.graph.nodes] == ["MatMulNBits", "Relu", "Gemm"]
    assert [note.reason for note in outcome.notes] == ["not quantized: its Gemm has factors"]


def test_a_gemms_bias_is_added_behind() -> None:
    graph = small_graph(
        "g (float[3,64] x) => (float[3,10] y) { y = Gemm <transB = 1> (x, v, c) }",
        v=normal(10, 64),
        c=normal(10),
    )
    x = normal(3, 64, seed=2)
    found = quantized(graph).graph
    assert [node.op for node in found.nodes] == ["MatMulNBits", "Add"]
    expected = x @ in_blocks(normal(10, 64), 32).dequantized().T + normal(10)
    np.testing.assert_allclose(oracle.run(found, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_onnxruntime_computes_what_the_rounded_weights_say() -> None:
    graph = quantized(model()).graph
    x = normal(3, 64, seed=2)
    (layer, *_) = graph.nodes
    packed, scales = (t.values for t in layer.inputs[1:])
    steps = np.stack([packed & 15, packed >> 4], axis=-1).reshape(40, 2, 32).astype(np.float32)
    rounded = ((steps - 8) * scales[:, :, None]).reshape(40, 64)
    expected = np.maximum(x @ rounded.T, 0) @ normal(40, 10) + 2 * normal(10)
    np.testing.assert_allclose(oracle.run(graph, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_the_judge_multiplies_in_floats_whatever_the_model_asks_for() -> None:
    graph = quantized(model()).graph
    rough = graph.edit()
    rough.nodes[0].attrs["accuracy_level"] = 4
    x = {"x": normal(3, 64, seed=2)}
    np.testing.assert_array_equal(oracle.run(rough, x)["y"], oracle.run(graph, x)["y"])


def test_pruned_weights_stay_zero_and_are_counted_two_a_byte() -> None:
    w = normal(64, 40)
    w[::2] = 0
    graph = quantized(model(w)).graph
    (cost, *_) = node_costs(graph)
    assert (cost.macs, cost.parameters - 80) == (3 * 64 * 40, 64 * 40)  # 80 scales
    size, active = parameter_counts(graph)
    assert size == 64 * 40 + 80 + 410
    # Of the others few round to zero: those below half a step.
    assert 0.9 * 32 * 40 < active - 80 - 410 <= 32 * 40


def test_a_block_that_onnxruntime_does_not_take_is_refused() -> None:
    with pytest.raises(UnusableInput, match="block is 24, but must be one of"):
        QuantizeBlocks(block=24)


def test_layers_named_in_skip_stay() -> None:
    graph = model()
    name = graph.nodes[0].name
    assert next(n.op for n in quantized(graph, skip=(name,)).graph.nodes) == "MatMul"


def test_a_gemm_whose_bias_is_an_empty_name_has_none() -> None:
    model_ = small_model(
        "g (float[3,64] x) => (float[3,10] y) { y = Gemm(x, v) }", v=normal(64, 10)
    )
    model_.graph.node[0].input.append("")
    graph = quantized(Graph.from_onnx(model_).infer_shapes()).graph
    assert [node.op for node in graph.nodes] == ["MatMulNBits"]
