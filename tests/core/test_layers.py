import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright.layers import linear_layers


@pytest.mark.parametrize(
    ("text", "weights", "matrix", "positions", "groups"),
    [
        ("float[1,5,4] x) => (float[1,5,3] y) { y = MatMul(x, w) }", (4, 3), (3, 4), 5, 1),
        ("float[2,4] x) => (float[2,3] y) { y = Gemm(x, w) }", (4, 3), (3, 4), 2, 1),
        (
            "float[2,4] x) => (float[2,3] y) { y = Gemm <transB=1> (x, w) }",
            (3, 4),
            (3, 4),
            2,
            1,
        ),
        (
            "float[1,2,6,6] x) => (float[1,3,4,4] y) { y = Conv(x, w) }",
            (3, 2, 3, 3),
            (3, 18),
            16,
            1,
        ),
        (
            "float[1,4,5] x) => (float[1,4,5] y) { y = Conv <group=4> (x, w) }",
            (4, 1, 1),
            (4, 1),
            5,
            4,
        ),
        ("float[n,4] x) => (float[n,3] y) { y = MatMul(x, w) }", (4, 3), (3, 4), 0, 1),
    ],
)
def test_a_layer_is_a_matrix_and_positions(
    text: str, weights: tuple[int, ...], matrix: tuple[int, int], positions: int, groups: int
) -> None:
    (layer,) = linear_layers(small_graph(f"g ({text}", w=normal(*weights)))
    assert (layer.outputs, layer.inputs) == matrix
    assert (layer.positions, layer.groups) == (positions, groups)
    assert layer.is_depthwise == (groups == 4)
    assert layer.source.name == "x"
    assert not layer.matrix().flags.writeable


@pytest.mark.parametrize(
    "text",
    [
        "float[1,4] x, float[4,4] w) => (float[1,4] y) { y = MatMul(x, w) }",
        "float[4,4] x) => (float[4,4] y) { y = MatMul(w, x) }",
        "float[4,2] x) => (float[2,4] y) { y = Gemm <transA=1> (x, w) }",
        "float[4,4] x) => (float[4,4] y) { y = Add(x, w) }",
    ],
)
def test_other_nodes_are_no_layers(text: str) -> None:
    weights = {} if " w)" in text.split("=>")[0] else {"w": normal(4, 4)}
    assert list(linear_layers(small_graph(f"g ({text}", **weights))) == []


def test_a_stack_of_matrices_is_no_layer() -> None:
    text = "g (float[2,3,4] x) => (float[2,3,5] y) { y = MatMul(x, w) }"
    assert list(linear_layers(small_graph(text, w=normal(2, 4, 5)))) == []


@pytest.mark.parametrize(
    ("node", "shape"),
    [("Conv(x, w)", (3, 4, 1)), ("MatMul(x, w)", (4, 3)), ("Gemm <transB = 1> (x, w)", (3, 4))],
)
def test_new_weights_go_back_in_the_node_s_own_layout(
    node: str, shape: tuple[int, ...]
) -> None:
    inputs = "1,4,5" if "Conv" in node else "2,4"
    outputs = "N,C,L" if "Conv" in node else "N,C"
    text = f"g (float[{inputs}] x) => (float[{outputs}] y) {{ y = {node} }}"
    g = small_graph(text, w=normal(*shape)).edit()
    (layer,) = linear_layers(g)
    matrix = np.arange(12, dtype=np.float64).reshape(3, 4)
    layer.replace(matrix)
    assert (layer.matrix() == matrix).all()
    assert g.constants()["w"].shape == shape
    assert g.constants()["w"].dtype == np.float32
    assert not g.constants()["w"].flags.writeable
