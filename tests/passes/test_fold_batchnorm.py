import numpy as np
import onnx
import pytest

from tests.graphs import agree, context, ops
from tests.small_models import normal, small_graph
from tilewright.facts import has_folded_batchnorm
from tilewright.graph import Graph
from tilewright.passes.clean.fold_batchnorm import FoldBatchnorm


def statistics(channels: int) -> dict[str, np.ndarray]:
    return {
        "s": normal(channels, seed=1),
        "h": normal(channels, seed=2),
        "m": normal(channels, seed=3),
        "v": np.abs(normal(channels, seed=4)) + 0.1,
    }


def fold(text: str, channels: int, **weights: np.ndarray) -> tuple[Graph, Graph, list[str]]:
    g = small_graph(text, **weights, **statistics(channels))
    before = str(g)
    out, notes = FoldBatchnorm()(g, context())
    assert str(g) == before
    assert has_folded_batchnorm(out) is None
    onnx.checker.check_model(out.to_onnx(), full_check=True)
    return g, out, [note.reason for note in notes]


def test_a_channel_is_scaled_and_shifted() -> None:
    g = small_graph(
        """g (float[1,1,2] x) => (float[1,1,2] y) {
            a = Conv(x, w, b)  y = BatchNormalization <epsilon = 0.0> (a, s, h, m, v)
        }""",
        w=np.full((1, 1, 1), 3, np.float32),
        b=np.array([5], np.float32),
        s=np.array([2], np.float32),
        h=np.array([7], np.float32),
        m=np.array([1], np.float32),
        v=np.array([16], np.float32),
    )
    out = FoldBatchnorm()(g, context()).graph
    # f = 2 / sqrt(16): w' = 3 f, b' = (5 - 1) f + 7.
    assert [t.values.item() for t in out.nodes[0].inputs[1:]] == [1.5, 9.0]


@pytest.mark.parametrize(
    ("layer", "shape", "weights", "after"),
    [
        ("Conv <pads = [1,1,1,1]> (x, w, b)", "1,4,6,6", (6, 4, 3, 3), ["Conv"]),
        ("Conv <group = 2> (x, w)", "1,4,6,6", (6, 2, 3, 3), ["Conv"]),
        (
            "ConvTranspose <strides = [2,2]> (x, w, b)",
            "1,4,6,6",
            (4, 6, 2, 2),
            ["ConvTranspose"],
        ),
        ("ConvTranspose <group = 2> (x, w)", "1,4,6,6", (4, 3, 2, 2), ["ConvTranspose"]),
        ("Gemm <alpha = 0.5, beta = 2.0> (x, w, b)", "3,4", (4, 6), ["Gemm"]),
        ("Gemm <transB = 1> (x, w)", "3,4", (6, 4), ["Gemm"]),
        ("MatMul(x, w)", "3,4", (4, 6), ["MatMul", "Add"]),
    ],
)
def test_every_kind_of_layer_takes_it_in(
    layer: str, shape: str, weights: tuple[int, ...], after: list[str]
) -> None:
    rank = "N,C" + ",H,W" * shape.startswith("1,4,6")
    text = f"""g (float[{shape}] x) => (float[{rank}] y) {{
        a = {layer}  y = BatchNormalization(a, s, h, m, v)
    }}"""
    g, out, notes = fold(text, 6, w=normal(*weights), b=normal(6, seed=5))
    assert ops(out) == after
    assert notes == []
    agree(g, out, {"x": normal(*map(int, shape.split(",")), seed=9)})


def test_two_in_a_row_fold_one_after_the_other() -> None:
    text = """g (float[1,4,6] x) => (float[1,4,6] y) {
        a = Conv(x, w)  b = BatchNormalization(a, s, h, m, v)
        y = BatchNormalization(b, s, h, m, v)
    }"""
    g, out, _ = fold(text, 4, w=normal(4, 4, 1))
    assert ops(out) == ["Conv"]
    agree(g, out, {"x": normal(1, 4, 6)})


def test_a_shared_weight_refuses() -> None:
    # Scaling it would change the other layer too.
    text = """g (float[1,4,6] x) => (float[1,4,6] y) {
        a = Conv(x, w)  b = BatchNormalization(a, s, h, m, v)  y = Conv(b, w)
    }"""
    g, out, notes = fold(text, 4, w=normal(4, 4, 1))
    assert str(out) == str(g)
    assert notes == ["not folded: w is shared"]


def test_a_shared_bias_is_left_to_the_other_layer() -> None:
    text = """g (float[1,4,6] x) => (float[1,4,6] y) {
        a = Conv(x, w, b)  c = BatchNormalization(a, s, h, m, v)  y = Conv(c, u, b)
    }"""
    g, out, _ = fold(text, 4, w=normal(4, 4, 1), u=normal(4, 4, 1, seed=6), b=normal(4))
    assert ops(out) == ["Conv", "Conv"]
    agree(g, out, {"x": normal(1, 4, 6)})


def test_a_result_that_is_read_elsewhere_refuses() -> None:
    text = """g (float[1,4,6] x) => (float[1,4,6] y) {
        a = Conv(x, w)  b = BatchNormalization(a, s, h, m, v)  y = Add(a, b)
    }"""
    _, out, notes = fold(text, 4, w=normal(4, 4, 1))
    assert ops(out) == ["Conv", "BatchNormalization", "Add"]
    assert notes == ["not folded: a is read elsewhere too"]


def test_channels_that_are_not_the_outputs_refuse() -> None:
    text = """g (float[1,4,5] x) => (float[1,4,6] y) {
        a = MatMul(x, w)  y = BatchNormalization(a, s, h, m, v)
    }"""
    _, _, notes = fold(text, 4, w=normal(5, 6))
    assert notes == ["not folded: its channels are not the outputs of the MatMul before it"]


def test_one_without_a_layer_before_it_stays() -> None:
    text = "g (float[1,4,5] x) => (float[1,4,5] y) { y = BatchNormalization(x, s, h, m, v) }"
    _, out, notes = fold(text, 4)
    assert ops(out) == ["BatchNormalization"]
    assert notes == ["not folded: it does not follow a layer with weights"]
