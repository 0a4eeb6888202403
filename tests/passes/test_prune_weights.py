import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graphs import context
from tests.small_models import normal, small_graph
from tilewright.errors import UnusableInput
from tilewright.passes.prune.magnitude import PruneWeights, largest_of_groups, smallest_to_zero
from tilewright.protocol import Note

ONE = "g (float[2,4] x) => (float[2,3] y) { y = MatMul(x, w) }"
TWICE = "g (float[4,4] x) => (float[4,4] y) { a = MatMul(x, w)  y = MatMul(a, w) }"


def test_the_smallest_weights_become_zero() -> None:
    w = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
    out, notes = PruneWeights(sparsity=0.5)(small_graph(ONE, w=w), context())
    assert out.constants()["w"].tolist() == [[-6, -5, -4], [0, 0, 0], [0, 0, 0], [3, 4, 5]]
    assert notes == ()


def test_the_given_graph_is_not_touched() -> None:
    g = small_graph(ONE, w=normal(4, 3))
    before = str(g)
    PruneWeights(sparsity=0.9)(g, context())
    assert str(g) == before


def test_a_weight_shared_by_two_nodes_is_left_alone() -> None:
    g = small_graph(TWICE, w=np.eye(4, dtype=np.float32))
    out, notes = PruneWeights(sparsity=0.5)(g, context())
    first, second = (node.name for node in g.nodes)
    assert str(out) == str(g)
    assert notes == (
        Note(first, f"w is shared with {second}"),
        Note(second, f"w is shared with {first}"),
    )


def test_two_of_four_inputs_stay() -> None:
    w = np.array([[4, 1, 3, 2], [-1, 5, 5, -5]], np.float32).T
    text = "g (float[1,4] x) => (float[1,2] y) { y = MatMul(x, w) }"
    out, _ = PruneWeights(sparsity=0.5, pattern="2:4")(small_graph(text, w=w), context())
    assert out.constants()["w"].T.tolist() == [[4, 0, 3, 0], [0, 0, 5, -5]]


def test_a_group_at_the_border_loses_as_much() -> None:
    found = largest_of_groups(np.array([[4.0, 3, 2, 1, 8, 9]]), 2, 4)
    assert found.tolist() == [[4, 3, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0, but must be a share of at least 0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"pattern": "4:2"}, 'pattern is "4:2", but must be "unstructured" or N:M'),
        ({"pattern": "blocks"}, 'pattern is "blocks"'),
        ({"pattern": "1:4"}, "makes the sparsity 0.75, but sparsity=0.5 was asked"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, float | str], message: str
) -> None:
    with pytest.raises(UnusableInput, match=message):
        PruneWeights(**options)  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 0.99))
def test_the_count_of_zeros_is_exact(rows: int, columns: int, sparsity: float) -> None:
    pruned = smallest_to_zero(np.ones((rows, columns)), sparsity)
    assert (pruned == 0).sum() == round(sparsity * (rows * columns))
