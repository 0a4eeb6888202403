import numpy as np

from tests.small_models import normal, small_graph
from tilewright.trace import Step, Trace, changes, survey

TEXT = "g (float[1,4] x) => (float[1,3] y) { a = Identity(x) y = MatMul(a, w) }"


def test_a_survey_counts_nodes_weights_and_zeros() -> None:
    found = survey(small_graph(TEXT, w=np.eye(4, 3, dtype=np.float32)))
    assert found.operators == {"Identity": 1, "MatMul": 1}
    assert (found.nodes, found.parameters, found.zeros) == (2, 12, 9)


def test_changes_name_operators_and_count_weights() -> None:
    before = small_graph(TEXT, w=normal(4, 3))
    after = small_graph(
        "g (float[1,4] x) => (float[1,3] y) { y = Gemm(x, w, b) }",
        w=normal(4, 3, seed=1),
        b=normal(3),
    )
    assert changes(before, after) == (
        "Gemm +1",
        "Identity -1",
        "MatMul -1",
        "weights changed: 1",
        "weights added: 1",
    )


def test_nothing_has_changed_in_a_copy() -> None:
    graph = small_graph(TEXT, w=normal(4, 3))
    assert changes(graph, graph.edit()) == ()


def test_seconds_are_not_in_the_part_that_repeats() -> None:
    found = survey(small_graph(TEXT, w=normal(4, 3)))
    fast = Trace(found, (Step("a", found, (), 0.1),))
    slow = Trace(found, (Step("a", found, (), 9.0),))
    assert fast.as_json() == slow.as_json()
    assert fast == slow
    assert slow.seconds() == [{"pass": "a", "seconds": 9.0}]
