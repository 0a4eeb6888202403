import numpy as np
import onnx

from tests.graphs import agree, context, ops
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.facts import Fact, has_folded_constants
from tilewright.graph import Graph
from tilewright.passes.clean.fold_constants import FoldConstants


def fold(graph: Graph) -> Graph:
    before = str(graph)
    out = FoldConstants()(graph, context()).graph
    assert str(graph) == before
    assert has_folded_constants(out) is None
    onnx.checker.check_model(out.to_onnx(), full_check=True)
    return out


def test_a_chain_of_known_nodes_becomes_one_constant() -> None:
    text = """g (float[1,2] x) => (float[1,2] y) {
        a = Add(w, w)  b = Mul(a, a)  y = MatMul(x, b)
    }"""
    g = small_graph(text, w=np.eye(2, dtype=np.float32))
    out = fold(g)
    assert ops(out) == ["MatMul"]
    assert out.constants()["b"].tolist() == [[4, 0], [0, 4]]
    agree(g, out, {"x": normal(1, 2)})


def test_a_reshape_by_a_computed_shape_becomes_static() -> None:
    text = """g (float[2,3,4] x) => (float[A,B] y) {
        s = Shape(x)  n = Gather(s, zero)  u = Unsqueeze(n, axes)
        t = Concat <axis = 0> (u, rest)  y = Reshape(x, t)
    }"""
    g = small_graph(text, zero=np.array(0), axes=np.array([0]), rest=np.array([-1]))
    out = fold(g)
    assert ops(out) == ["Reshape"]
    assert out.constants()["t"].tolist() == [2, -1]
    agree(g, out, {"x": normal(2, 3, 4)})


def test_shapes_that_only_a_folded_reshape_reveals_are_folded_in_the_next_round() -> None:
    text = """g (float[2,6] x, float[k] z) => (float[A,B] y) {
        h = Mul(half, two)  c = Cast <to = 7> (h)  a = Reshape(x, c)
        s = Shape(a)  n = Size(a)  b = Reshape(a, s)  f = Cast <to = 1> (n)  y = Mul(b, f)
    }"""
    g = small_graph(text, half=np.array([1.5, 2], np.float32), two=np.array([2, 2], np.float32))
    out = fold(g)
    assert ops(out) == ["Reshape", "Reshape", "Mul"]
    assert out.constants()["s"].tolist() == [3, 4]
    assert out.constants()["f"] == 12


def test_a_part_of_a_shape_is_folded() -> None:
    text = """g (float[2,3,4] x) => (int64[2] y) {
        s = Shape <start = 1, end = -1> (x)  t = Shape <start = 2> (x)
        y = Concat <axis = 0> (s, t)
    }"""
    out = fold(small_graph(text))
    # The node that writes the output stays; what it reads is known.
    assert ops(out) == ["Concat"]
    assert oracle.run(out, {"x": normal(2, 3, 4)})["y"].tolist() == [3, 4]


def test_an_unknown_shape_stays() -> None:
    g = small_graph("g (float[n,3] x) => (int64[2] y) { s = Shape(x)  y = Mul(s, s) }")
    assert ops(fold(g)) == ["Shape", "Mul"]


def test_random_numbers_are_drawn_at_run_time() -> None:
    text = """g (float[1,2] x) => (float[1,2] y) {
        r = RandomNormalLike(w)  y = Add(x, r)
    }"""
    out, notes = FoldConstants()(small_graph(text, w=normal(1, 2)), context())
    assert ops(out) == ["RandomNormalLike", "Add"]
    assert [note.reason for note in notes] == [
        "not folded: RandomNormalLike draws random numbers"
    ]
    assert has_folded_constants(out) is None


def test_a_result_that_would_bloat_the_model_is_not_stored() -> None:
    text = """g (float[1,1024] x) => (float[1,1024] y) {
        e = Expand(one, shape)  n = Neg(e)  y = MatMul(x, n)
    }"""
    g = small_graph(text, one=np.ones(1, np.float32), shape=np.array([1024, 1024]))
    out, notes = FoldConstants()(g, context())
    assert ops(out) == ["Expand", "Neg", "MatMul"]
    assert "its result has 4194304 bytes and is made of 20" in notes[0].reason
    assert has_folded_constants(out) is None


def test_quantized_weights_stay_narrow() -> None:
    text = """g (float[1,4] x) => (float[1,4] y) {
        w = DequantizeLinear(q, s)  y = MatMul(x, w)
    }"""
    g = small_graph(text, q=np.eye(4, dtype=np.int8), s=np.array(0.5, np.float32))
    assert ops(fold(g)) == ["DequantizeLinear", "MatMul"]


def test_an_if_whose_way_is_known_becomes_that_branch() -> None:
    text = """g (float[1,4] x) => (float[1,4] y, float[1,4] z) {
        a = Relu(x)
        p, q = If (flag) <
            then_branch = t () => (float[1,4] b, float[1,4] c) { b = Neg(a)  c = Exp(b) },
            else_branch = e () => (float[1,4] b, float[1,4] c) { b = Abs(a)  c = Add(b, w) } >
        y = Add(p, q)  z = Identity(q)
    }"""
    feeds = {"x": normal(1, 4)}
    for flag, expected in ((True, ["Neg", "Exp"]), (False, ["Abs", "Add"])):
        g = small_graph(text, flag=np.array(flag), w=normal(1, 4, seed=2))
        out = fold(g)
        assert ops(out) == ["Relu", *expected, "Add", "Identity"]
        agree(g, out, feeds)


def test_branches_that_use_the_same_names_are_told_apart() -> None:
    one = """If (flag) <
        then_branch = t () => (float[2] b) { m = Neg(a)  b = Exp(m) },
        else_branch = e () => (float[2] b) { b = Abs(a) } >"""
    text = (
        f"g (float[2] x) => (float[2] y) {{ a = Relu(x)  p = {one} q = {one} y = Add(p, q) }}"
    )
    g = small_graph(text, flag=np.array(True))
    out = fold(g)
    assert ops(out) == ["Relu", "Neg", "Exp", "Neg", "Exp", "Add"]
    agree(g, out, {"x": normal(2)})


def test_a_branch_may_read_what_was_folded_outside() -> None:
    text = """g (float[1,4] x, bool flag) => (float[1,4] y) {
        c = Neg(w)
        y = If (flag) <
            then_branch = t () => (float[1,4] p) { p = Add(x, c) },
            else_branch = e () => (float[1,4] q) { q = Sub(x, c) } >
    }"""
    g = small_graph(text, w=normal(1, 4))
    out = fold(g)
    assert ops(out) == ["If"]
    for flag in (True, False):
        agree(g, out, {"x": normal(1, 4), "flag": np.array(flag)})


def test_the_fact_is_given() -> None:
    assert FoldConstants.gives == {Fact.CONSTANTS_FOLDED}
