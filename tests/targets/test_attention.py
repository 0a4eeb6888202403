"""Attention as one kernel, against onnxruntime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    Within,
    agree,
    cpu,
    every_isa,
    graph_of,
    islands,
    normal_feeds,
    vector_unit,
)
from tilewright.graph import Graph
from tilewright.protocol import silent
from tilewright.targets.lower.anchors import ANCHORS
from tilewright.targets.lower.lowering import Lowering
from tilewright.targets.lower.program import Call

# Averages of unit normals, weighted by shares that were added up in another order.
AVERAGES = Within(rtol=1e-4, atol=1e-5)
EXTENTS = st.one_of(st.integers(16, 20), st.integers(30, 70))
FEW = st.integers(1, 20)


@st.composite
def attentions(draw: st.DrawFn) -> Graph:
    """Return attention of any extents, with a mask or not, scaled before or after."""
    heads, queries, keys = draw(st.integers(1, 3)), draw(EXTENTS), draw(EXTENTS)
    depth, width = draw(FEW), draw(FEW)
    mask = draw(st.sampled_from(["", f"1,1,1,{keys}", f"{heads},{queries},{keys}"]))
    masked = "m = Add(s, mask)" if mask else "m = Identity(s)"
    given_mask = f", float[{mask}] mask" if mask else ""
    # Queries lie side by side where the tensor is (heads, depth, queries).
    return graph_of(
        f"g (float[1,{heads},{depth},{queries}] q, float[1,{heads},{depth},{keys}] k,"
        f" float[1,{heads},{keys},{width}] v{given_mask})"
        f" => (float[1,{heads},{queries},{width}] y) {{"
        f" qt = Transpose <perm = [0, 1, 3, 2]> (q) p = MatMul(qt, k) s = Mul(p, scale)"
        f" {masked} w = Softmax <axis = -1> (m) o = MatMul(w, v) y = Relu(o) }}",
        scale=np.array(0.3, np.float32),
    )


@every_isa
@settings(deadline=None, max_examples=8)
@given(graph=attentions())
def test_attention_of_any_extents_agrees(isa: str, graph: Graph) -> None:
    assert islands(agree(graph, normal_feeds(graph), isa, within=AVERAGES)) == []


def block(tokens: int) -> Graph:
    """Return a block as encoders have it: three layers, heads split off, joined again."""
    heads, depth = 2, 8
    channels = heads * depth
    split = "".join(
        f" {n} = MatMul(x, w{n}) {n}h = Reshape({n}, shape)"
        f" {n}t = Transpose <perm = {[0, 2, 3, 1] if n == 'k' else [0, 2, 1, 3]}> ({n}h)"
        for n in "qkv"
    )
    return graph_of(
        f"g (float[1,{tokens},{channels}] x, float[1,1,1,{tokens}] mask)"
        f" => (float[1,{tokens},{channels}] y) {{{split}"
        " p = MatMul(qt, kt) s = Div(p, root) m = Add(s, mask) w = Softmax(m)"
        " o = MatMul(w, vt) j = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(j, back) }",
        shape=np.array([1, tokens, heads, depth]),
        back=np.array([1, tokens, channels]),
        root=np.array(depth**0.5, np.float32),
        wq=normal(channels, channels),
        wk=normal(channels, channels, seed=1),
        wv=normal(channels, channels, seed=2),
    )


@every_isa
def test_an_encoders_attention_is_one_kernel(isa: str) -> None:
    graph = block(40)
    feeds = normal_feeds(graph)
    feeds["mask"][..., 30:] = -1e9
    assert islands(agree(graph, feeds, isa, within=AVERAGES)) == []
    names = kernels(graph)
    assert names.count("attention") == 1
    assert not {"softmax", "product"} & set(names)


def kernels(graph: Graph) -> list[str]:
    """Return the names of the kernels that run a graph, in order."""
    steps = Lowering(graph, cpu(), vector_unit("avx2"), ANCHORS).run(silent).steps
    return [step.kernel.name for step in steps if isinstance(step, Call)]


def test_keys_that_are_all_masked_share_equally() -> None:
    graph = block(32)
    feeds = normal_feeds(graph)
    feeds["mask"][...] = -1e9
    agree(graph, feeds, within=AVERAGES)


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_few_queries_take_the_kernels_one_by_one(tokens: int) -> None:
    graph = block(tokens)
    assert "attention" not in kernels(graph)
    agree(graph, normal_feeds(graph), within=AVERAGES)


def test_scores_and_weights_that_others_read_are_stored() -> None:
    graph = graph_of(
        "g (float[1,2,8,40] q, float[1,2,8,40] k, float[1,2,40,8] v)"
        " => (float[1,2,40,8] y, float[1,2,40,40] w, float[1,2,40,40] t) {"
        " qt = Transpose <perm = [0, 1, 3, 2]> (q) p = MatMul(qt, k) w = Softmax(p)"
        " y = MatMul(w, v) t = Tanh(p) }"
    )
    agree(graph, normal_feeds(graph), within=AVERAGES)


def test_values_that_depend_on_the_scores_agree() -> None:
    graph = graph_of(
        "g (float[1,2,40,40] q, float[1,2,40,40] k) => (float[1,2,40,40] y) {"
        " qt = Transpose <perm = [0, 1, 3, 2]> (q) p = MatMul(qt, k) w = Softmax(p)"
        " v = MatMul(p, k) y = MatMul(w, v) }"
    )
    agree(graph, normal_feeds(graph), within=Within(rtol=1e-4, atol=1e-3))
