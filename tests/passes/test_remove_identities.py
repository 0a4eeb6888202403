import numpy as np
import onnx
import pytest

from tests.graphs import agree, context, ops
from tests.small_models import normal, small_graph
from tilewright.facts import has_no_identities
from tilewright.graph import Graph
from tilewright.passes.clean.remove_identities import RemoveIdentities


def remove(graph: Graph) -> Graph:
    before = str(graph)
    out = RemoveIdentities()(graph, context()).graph
    assert str(graph) == before
    assert has_no_identities(out) is None
    onnx.checker.check_model(out.to_onnx(), full_check=True)
    return out


@pytest.mark.parametrize(
    "node",
    [
        "Identity(a)",
        "Dropout(a)",
        "Dropout(a, ratio, off)",
        "Reshape(a, same)",
        "Transpose <perm = [0,1]> (a)",
        "Cast <to = 1> (a)",
    ],
)
def test_nodes_that_change_nothing_go(node: str) -> None:
    g = small_graph(
        f"g (float[2,3] x) => (float[2,3] y) {{ a = Relu(x)  b = {node}  y = Neg(b) }}",
        same=np.array([2, -1]),
        ratio=np.array(0.5, np.float32),
        off=np.array(False),
    )
    out = remove(g)
    assert ops(out) == ["Relu", "Neg"]
    assert out.constants() == {}
    agree(g, out, {"x": normal(2, 3)})


@pytest.mark.parametrize(
    "node",
    ["Transpose <perm = [1,0]> (a)", "Reshape(a, other)", "Cast <to = 11> (a)", "Transpose(a)"],
)
def test_nodes_that_change_something_stay(node: str) -> None:
    g = small_graph(
        f"g (float[2,3] x) => (float[A,B] y) {{ a = Relu(x)  b = {node}  c = Neg(b)"
        " y = Cast <to = 1> (c) }",
        other=np.array([3, 2]),
    )
    assert len(remove(g).nodes) >= 3


def test_dropout_whose_mask_is_read_stays() -> None:
    text = """g (float[2] x) => (float[2] y, bool[2] n) {
        a, m = Dropout(x)  y = Neg(a)  n = Not(m)
    }"""
    assert ops(remove(small_graph(text))) == ["Dropout", "Neg", "Not"]


def test_an_output_keeps_its_name() -> None:
    g = small_graph(
        "g (float[2] x) => (float[2] y) { a = Relu(x)  b = Identity(a)  y = Identity(b) }"
    )
    out = remove(g)
    assert ops(out) == ["Relu"]
    assert [t.name for t in out.outputs] == ["y"]
    agree(g, out, {"x": normal(2)})


def test_what_else_read_the_renamed_tensor_reads_the_output() -> None:
    g = small_graph(
        """g (float[2] x) => (float[2] y, float[2] z) {
            a = Relu(x)  y = Identity(a)  z = Neg(a)
        }"""
    )
    out = remove(g)
    assert ops(out) == ["Relu", "Neg"]
    agree(g, out, {"x": normal(2)})


def test_outputs_that_are_one_tensor_or_an_input_keep_their_identity() -> None:
    g = small_graph(
        """g (float[2] x) => (float[2] y, float[2] z, float[2] i) {
            y = Relu(x)  z = Identity(y)  i = Identity(x)
        }"""
    )
    out = remove(g)
    assert ops(out) == ["Relu", "Identity", "Identity"]
    agree(g, out, {"x": normal(2)})


def test_dead_nodes_and_their_weights_go() -> None:
    g = small_graph(
        "g (float[2,2] x) => (float[2,2] y) { y = Relu(x)  a = MatMul(x, w)  b = Neg(a) }",
        w=normal(2, 2),
    )
    out = remove(g)
    assert ops(out) == ["Relu"]
    assert out.constants() == {}


def test_branches_read_past_a_removed_identity() -> None:
    text = """g (float[2] x, bool flag) => (float[2] y) {
        a = Relu(x)  b = Identity(a)  d = Exp(x)
        y = If (flag) <
            then_branch = t () => (float[2] p) { i = Identity(b)  p = Neg(i) },
            else_branch = e () => (float[2] q) { q = Identity(b) } >
    }"""
    g = small_graph(text)
    out = remove(g)
    assert ops(out) == ["Relu", "If"]
    branches = out.nodes[1].attrs
    assert [n.op for n in branches["then_branch"].nodes] == ["Neg"]
    # A branch's output must be written in the branch.
    assert [n.op for n in branches["else_branch"].nodes] == ["Identity"]
    for flag in (True, False):
        agree(g, out, {"x": normal(2), "flag": np.array(flag)})
