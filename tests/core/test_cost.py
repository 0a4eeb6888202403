import numpy as np

from tests.small_models import normal, small_graph
from tilewright.cost import node_costs, parameter_bytes, parameter_counts


def test_a_matmul_costs_outputs_times_inputs_times_positions() -> None:
    graph = small_graph(
        "g (float[5,4] x) => (float[5,3] y) { y = MatMul(x, w) }", w=normal(4, 3)
    )
    (cost,) = node_costs(graph)
    assert (cost.macs, cost.parameters, cost.weight_bytes) == (60, 12, 48)


def test_zeros_are_not_active() -> None:
    graph = small_graph(
        "g (float[5,4] x) => (float[5,3] y) { y = MatMul(x, w) }",
        w=np.eye(4, 3, dtype=np.float32),
    )
    (cost,) = node_costs(graph)
    assert (cost.active, cost.active_macs) == (3, 15)


def test_a_grouped_convolution_multiplies_within_its_groups() -> None:
    graph = small_graph(
        "g (float[1,4,6,6] x) => (float[1,4,4,4] y) { y = Conv<group=4>(x, w) }",
        w=normal(4, 1, 3, 3),
    )
    assert [cost.macs for cost in node_costs(graph)] == [4 * 9 * 16]


def test_a_product_of_activations_has_macs_and_no_weights() -> None:
    text = "g (float[2,5,4] a, float[2,4,3] b) => (float[2,5,3] y) { y = MatMul(a, b) }"
    (cost,) = node_costs(small_graph(text))
    assert (cost.macs, cost.parameters) == (2 * 5 * 4 * 3, 0)


def test_a_shared_weight_is_counted_once_and_integers_are_no_parameters() -> None:
    text = """g (float[1,4] x) => (float[2,2] y) {
        a = MatMul(x, w) b = MatMul(a, w) y = Reshape(b, shape) }"""
    graph = small_graph(text, w=normal(4, 4), shape=np.array([2, 2], dtype=np.int64))
    assert sum(cost.parameters for cost in node_costs(graph)) == 18
    assert parameter_counts(graph) == (16, 16)
    assert parameter_bytes(graph) == 64


def test_weights_in_a_branch_are_counted_too() -> None:
    text = """g (bool c, float[1,4] x) => (float[1,4] y) {
        y = If (c) <
            then_branch = t () => (float[1,4] a) {
                b = Constant <value = float[4] {1, 2, 3, 0}> ()
                a = Add(x, b)
            },
            else_branch = e () => (float[1,4] d) { d = MatMul(x, w) }
        > }"""
    graph = small_graph(text, w=normal(4, 4))
    for counted in (graph, graph.edit()):
        assert parameter_counts(counted) == (20, 19)
        assert parameter_bytes(counted) == 80


def test_quantized_weights_are_weights_and_shapes_are_not() -> None:
    graph = small_graph(
        "g (float[5,4] x) => (float[15] y) { f = DequantizeLinear(w, s) m = MatMul(x, f)"
        " y = Reshape(m, shape) }",
        w=np.eye(4, 3, dtype=np.int8),
        s=np.array(0.5, np.float32),
        shape=np.array([15]),
    )
    assert (parameter_bytes(graph), parameter_counts(graph)) == (16, (13, 4))
