from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import THREE_LAYERS, agree, three_layers
from tests.small_models import normal, small_graph, small_model
from tilewright import graph as graph_module
from tilewright import oracle
from tilewright.graph import Graph, constant, static_shape, with_inputs

IF = """g (float[1,4] x, bool flag) => (float[1,4] y) {
    a = Relu(x)
    y = If (flag) <
        then_branch = t () => (float[1,4] p) { p = MatMul(a, w) },
        else_branch = e () => (float[1,4] q) { q = Neg(a) } >
}"""


def test_weights_cannot_be_written_to() -> None:
    weights = three_layers().constants()
    assert list(weights) == ["w1", "b1", "w2", "b2", "w3"]
    with pytest.raises(ValueError, match="read-only"):
        weights["w1"][0, 0] = 1


def test_a_graph_keeps_nothing_of_the_message_it_came_from() -> None:
    # One part of a message, such as its list of operator sets, keeps all its weights in memory.
    model = small_model("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    domains = Graph.from_onnx(model).gs.import_domains
    del model.opset_import[:]
    assert [(d.domain, d.version) for d in domains] == [("", 17)]


def test_a_new_constant_leaves_the_array_it_was_made_of_alone() -> None:
    values = np.zeros(3)
    assert not constant("c", values).values.flags.writeable
    values[0] = 1


def test_an_edit_does_not_reach_the_original() -> None:
    g = small_graph(
        "g (float[1,1,4] x) => (float[1,1,4] y) { y = Conv <pads = [1,1]> (x, w) }",
        w=normal(1, 1, 3),
    )
    before = str(g)
    edited = g.edit()
    edited.nodes[0].attrs["pads"][0] = 0
    edited.nodes[0].inputs[1].values = np.zeros((1, 1, 3), np.float32)
    edited.gs.inputs[0].shape[2] = 5
    edited.gs.nodes.clear()
    assert str(g) == before


def test_an_edit_shares_the_weights() -> None:
    g = three_layers()
    assert g.edit().constants()["w1"] is g.constants()["w1"]


def test_nodes_without_a_name_get_one_of_their_own() -> None:
    model = small_model("g (float[2] x) => (float[2] y) { a = Neg(x) b = Neg(a) y = Neg(b) }")
    for node, name in zip(model.graph.node, ("Neg_0", "", "Neg_0"), strict=True):
        node.name = name
    names = [node.name for node in Graph.from_onnx(model).nodes]
    assert names[0] == "Neg_0"
    assert len(set(names)) == 3


def test_constant_nodes_become_weights() -> None:
    g = small_graph(
        """g (float[2] x) => (float[2] y) {
            c = Constant <value_floats = [1.0, 2.0]> ()  y = Add(x, c)
        }"""
    )
    assert [node.op for node in g.nodes] == ["Add"]
    assert g.constants()["c"].tolist() == [1, 2]
    assert not g.constants()["c"].flags.writeable


def test_the_view_has_an_edge_from_writer_to_reader() -> None:
    g = three_layers()
    names = [node.name for node in g.nodes]
    edges = [(a, b, d["tensor"]) for a, b, d in g.dag().edges(data=True)]
    assert edges == [(a, b, t) for a, b, t in zip(names, names[1:], "abrcds", strict=False)]


def test_the_view_sees_what_a_branch_reads() -> None:
    g = small_graph(IF, w=normal(4, 4))
    assert [d["tensor"] for _, _, d in g.dag().edges(data=True)] == ["a"]


def test_a_graph_with_branches_goes_out_and_comes_back() -> None:
    g = small_graph(IF, w=normal(4, 4))
    again = Graph.from_onnx(g.edit().to_onnx())
    onnx.checker.check_model(again.to_onnx(), full_check=True)
    for flag in (True, False):
        agree(g, again, {"x": normal(1, 4), "flag": np.array(flag)})


def test_sorting_puts_writers_before_readers() -> None:
    g = three_layers().edit()
    names = [node.name for node in g.nodes]
    g.gs.nodes.reverse()
    assert [node.name for node in g.sorted().nodes] == names


def test_shapes_are_inferred_although_large_weights_stay_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_module, "EXTERNAL_BYTES", 100)
    g = Graph.from_onnx(small_model(THREE_LAYERS, 17, **three_layers().constants()))
    assert [i.name for i in g.skeleton().graph.input] == ["x", "w1", "w2", "w3"]
    tensors = g.infer_shapes().gs.tensors()
    assert static_shape(tensors["s"]) == (1, 16, 8)
    assert tensors["s"].dtype == np.float32


def test_constants_can_be_made_inputs() -> None:
    graph = small_graph(
        "g (float[2,3] x) => (float[2,4] y) { h = MatMul(x, w)  y = Add(h, b) }",
        w=normal(3, 4),
        b=normal(4, seed=1),
    )
    opened = with_inputs(graph, ["w"])
    assert [t.name for t in opened.inputs] == ["x", "w"]
    assert set(opened.constants()) == {"b"}
    assert set(graph.constants()) == {"w", "b"}
    x, w = normal(2, 3, seed=2), normal(3, 4, seed=3)
    found = oracle.run(opened, {"x": x, "w": w})["y"]
    np.testing.assert_allclose(found, x @ w + graph.constants()["b"], rtol=1e-5)


def test_constants_that_a_branch_reads_too_can_be_made_inputs() -> None:
    w, x = normal(4, 4), normal(1, 4, seed=2)
    opened = with_inputs(small_graph(IF.replace("Relu(x)", "MatMul(x, w)"), w=w), ["w"])
    for flag, expected in ((True, x @ (2 * w) @ (2 * w)), (False, -x @ (2 * w))):
        found = oracle.run(opened, {"x": x, "flag": np.array(flag), "w": 2 * w})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_open_dimension_is_no_static_shape() -> None:
    g = small_graph("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    assert static_shape(g.outputs[0]) is None


def test_metadata_travels() -> None:
    model = small_model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    onnx.helper.set_model_props(model, {"labels": "cat,dog"})
    out = Graph.from_onnx(model).edit().to_onnx()
    assert {p.key: p.value for p in out.metadata_props} == {"labels": "cat,dog"}


def test_large_weights_go_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_module, "EXTERNAL_BYTES", 100)
    monkeypatch.setattr(graph_module, "_PROTOBUF_BYTES", 100)
    g = three_layers()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        g.save(tmp_path / name / "m.onnx")
    assert (tmp_path / "one/m.onnx.data").exists()
    onnx.checker.check_model(tmp_path / "one/m.onnx", full_check=True)
    agree(g, Graph.from_onnx(onnx.load(tmp_path / "one/m.onnx")), {"x": normal(1, 16, 12)})
    for file in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_graph_reads_as_one_line_a_node() -> None:
    g = small_graph(
        "g (float[1,4] x) => (float[1,2] y) { a = Gemm <transB = 1> (x, w)  y = Mul(a, two) }",
        w=np.eye(2, 4, dtype=np.float32),
        two=np.array(2, np.float32),
    )
    assert str(g) == (
        "x:1x4:float32 = input\n"
        "a:1x2:float32 = Gemm(x, w[2x4 75% zeros]) {transB=1}\n"
        "y:1x2:float32 = Mul(a, float322.0)\n"
        "return y\n"
    )


def test_a_scalar_stays_one_in_a_file(tmp_path: Path) -> None:
    graph = small_graph("g (float[2,2] x) => (float[2,2] y) { y = Mul(x, s) }", s=normal(1))
    graph = graph.edit()
    graph.nodes[0].inputs[1] = constant("two", np.asarray(2, np.float32))
    graph.save(tmp_path / "model.onnx")
    (two,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert list(two.dims) == []
