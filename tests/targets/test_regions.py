from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.builds import graph_of
from tilewright.graph import Graph
from tilewright.targets.lower.chains import is_elementwise
from tilewright.targets.lower.regions import Region, find_regions, inputs_of


def regions_of(graph: Graph) -> list[Region]:
    return find_regions(graph, is_elementwise, is_elementwise)


def written(body: str, outputs: str = "float[2,3] y") -> list[str]:
    """Return the regions of `body` as "Relu Add" texts."""
    graph = graph_of(f"g (float[2,3] x) => ({outputs}) {{ {body} }}")
    return [" ".join(n.op for n in region.nodes) for region in regions_of(graph)]


def can_run(graph: Graph) -> None:
    """Assert that each region reads only what earlier ones, or it itself, have written."""
    done = {t.name for t in graph.inputs}
    regions = regions_of(graph)
    for region in regions:
        for node in region.nodes:
            missing = {t.name for t in inputs_of(node)} - done
            assert not missing, f"{node.name} reads {missing} too early"
            done |= {t.name for t in node.outputs}
    assert sorted(n.name for r in regions for n in r.nodes) == sorted(
        n.name for n in graph.nodes
    )


OPS = st.sampled_from(["Add", "Mul", "Softmax", "Relu", "Reshape"])


@st.composite
def tangles(draw: st.DrawFn) -> Graph:
    """Return random graphs of nodes that fuse and (Softmax) nodes that do not."""
    names = ["x"]
    body = []
    for index in range(draw(st.integers(1, 12))):
        op = draw(OPS)
        inputs = [draw(st.sampled_from(names))]
        if op in ("Add", "Mul"):
            inputs.append(draw(st.sampled_from(names)))
        if op == "Reshape":
            inputs.append("shape")
        names.append(f"t{index}")
        body.append(f"t{index} = {op}({', '.join(inputs)})")
    outputs = ", ".join(f"float[2,3] {n}" for n in names[1:])
    text = f"g (float[2,3] x) => ({outputs}) <int64[2] shape = {{2, 3}}> {{ {' '.join(body)} }}"
    return graph_of(text)


@settings(deadline=None, max_examples=150)
@given(tangles())
def test_regions_can_run_one_after_the_other_whatever_the_graph(graph: Graph) -> None:
    can_run(graph)


def test_a_chain_is_one_region() -> None:
    assert written("a = Relu(x) b = Sigmoid(a) y = Mul(a, b)") == ["Relu Sigmoid Mul"]


def test_a_residual_joins_the_region_that_comes_last() -> None:
    assert written("a = Softmax(x) b = Softmax(a) c = Relu(b) y = Add(c, a)") == [
        "Softmax",
        "Softmax",
        "Relu Add",
    ]


def test_a_diamond_with_a_softmax_on_one_side_stays_apart() -> None:
    # Relu and Add in one region would wait for the Softmax, which waits for Relu.
    assert written("a = Relu(x) b = Softmax(a) y = Add(a, b)") == ["Relu", "Softmax", "Add"]


def test_an_identity_may_lead_a_region() -> None:
    assert written("a = Identity(x) y = Relu(a)") == ["Identity Relu"]


def test_a_diamond_without_one_is_a_region() -> None:
    assert written("a = Relu(x) b = Sigmoid(a) c = Tanh(a) y = Add(b, c)") == [
        "Relu Sigmoid Tanh Add"
    ]


def test_a_value_may_be_read_inside_and_outside() -> None:
    body = "a = Relu(x) y = Sigmoid(a) z = Softmax(a)"
    assert written(body, "float[2,3] y, float[2,3] z") == ["Relu Sigmoid", "Softmax"]


def test_another_shape_ends_a_region_and_an_axis_of_one_does_not() -> None:
    graph = graph_of(
        "g (float[2,3] x) => (float[1,2,3] y, float[4,2,3] z)"
        " <int64[1] zero = {0}, int64[3] wide = {4, 1, 1}>"
        " { a = Relu(x) b = Unsqueeze(a, zero) y = Tanh(b) c = Expand(b, wide) z = Neg(c) }"
    )
    assert [" ".join(n.op for n in r.nodes) for r in regions_of(graph)] == [
        "Relu Unsqueeze Tanh",
        "Expand",
        "Neg",
    ]


def test_a_reshape_whose_target_is_computed_from_the_region_stays_outside() -> None:
    # As a member it would wait for the Gather, and the Gather for the region.
    graph = graph_of(
        "g (int64[1,2] x) => (int64[2] y) <int64 row = {0}>"
        " { a = Add(x, x) s = Gather(a, row) y = Reshape(a, s) }"
    )
    graph.outputs[0].shape = [2]
    can_run(graph)


def test_a_branch_that_reads_an_outer_tensor_counts_as_a_reader() -> None:
    graph = graph_of(
        "g (float[2,3] x, bool go) => (float[2,3] y) { a = Relu(x)"
        " b = If (go) <then_branch = t () => (float[2,3] p) { p = Tanh(a) },"
        " else_branch = e () => (float[2,3] q) { q = Neg(a) }>"
        " y = Add(a, b) }"
    )
    can_run(graph)
    assert [r.anchor.op for r in regions_of(graph)] == ["Relu", "If", "Add"]
