"""Which outputs hold scores of classes."""

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright.class_scores import class_scores


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("(float[1,4] x) => (float[1,3] y) { y = MatMul(x, w) }", ["y"]),
        ("(float[1,4] x) => (float[1,3] y) { z = MatMul(x, w)  y = Softmax(z) }", ["z"]),
        # The next words of a text: a row at each position.
        ("(float[1,5,4] x) => (float[1,5,3] y) { z = MatMul(x, w)  y = Add(z, b) }", ["y"]),
        # Heads of attention are parts of what a layer writes.
        (
            "(float[1,5,4] x) => (float[1,4,5,1] y) "
            "{ z = MatMul(x, s)  y = Reshape(z, shape) }",
            [],
        ),
        # A softmax over positions makes no classes of what is at each.
        (
            "(float[1,5,4] x) => (float[1,5,3] y) { z = MatMul(x, w)  y = Softmax<axis=1>(z) }",
            [],
        ),
        # Features of an image of three columns, and one row of features.
        ("(float[1,4,3,3] x) => (float[1,3,3,3] y) { y = Conv(x, k) }", []),
        ("(float[1,4,1,1] x) => (float[1,3] y) { z = Conv(x, k)  y = Flatten(z) }", ["y"]),
        # A softmax in front of what makes one row of an image's features, and behind it.
        (
            "(float[1,4,1,1] x) => (float[1,3] y) "
            "{ z = Conv(x, k)  s = Softmax<axis=1>(z)  y = Flatten(s) }",
            ["z"],
        ),
        (
            "(float[1,3,4] x) => (float[3,3] y) "
            "{ z = MatMul(x, w)  s = Softmax<axis=2>(z)  y = Reshape(s, rows) }",
            ["z"],
        ),
        ("(float[1,4] x) => (float[1,3] y) { z = MatMul(x, w)  y = Tanh(z) }", []),
        ("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }", []),
    ],
)
def test_scores_are_what_a_linear_layer_writes_along_the_last_axis(
    text: str, scored: list[str]
) -> None:
    weights = {
        "w": normal(4, 3),
        "b": normal(3),
        "s": normal(4, 4),
        "k": normal(3, 4, 1, 1),
        "shape": np.array([1, 4, 5, 1], np.int64),
        "rows": np.array([3, 3], np.int64),
    }
    graph = small_graph(f"g {text}", **{n: w for n, w in weights.items() if f" {n})" in text})
    assert [tensor.name for tensor in class_scores(graph)] == scored
