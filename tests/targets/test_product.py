"""The product of two activations, against onnxruntime."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    Within,
    agree,
    every_isa,
    graph_of,
    islands,
    kernels,
    normal_feeds,
)
from tilewright.graph import Graph

# Sums of up to 70 products of unit normals, added up in another order.
SUMS = Within(rtol=1e-4, atol=3e-5)
EXTENTS = st.one_of(st.integers(1, 9), st.integers(10, 70))


@st.composite
def products(draw: st.DrawFn) -> Graph:
    """Return A B of any batch (one side may be broadcast), each side perhaps transposed."""
    rows, depth, columns = draw(EXTENTS), draw(EXTENTS), draw(EXTENTS)
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    left = [1 if draw(st.booleans()) else n for n in batch]
    right = batch[draw(st.integers(0, len(batch))) :]
    out = np.broadcast_shapes(tuple(left), tuple(right))
    a, b = [*left, rows, depth], [*right, depth, columns]
    steps = []
    for name, shape in (("a", a), ("b", b)):
        if draw(st.booleans()):
            shape[-2:] = shape[:-3:-1]
            perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
            steps.append(f"{name}t = Transpose <perm = {perm}> ({name})")
        else:
            steps.append(f"{name}t = Identity({name})")
    text = ["[" + ",".join(map(str, s)) + "]" for s in (a, b, [*out, rows, columns])]
    return graph_of(
        f"g (float{text[0]} a, float{text[1]} b, float{text[2]} r) => (float{text[2]} y)"
        f" {{ {' '.join(steps)} p = MatMul(at, bt) s = Mul(p, half) y = Add(s, r) }}",
        half=np.array(0.5, np.float32),
    )


@every_isa
@settings(deadline=None, max_examples=6)
@given(graph=products())
def test_a_product_of_any_shape_agrees(isa: str, graph: Graph) -> None:
    assert islands(agree(graph, normal_feeds(graph), isa, within=SUMS)) == []


def test_vectors_and_a_constant_from_the_left_agree() -> None:
    graph = graph_of(
        "g (float[7] v, float[7,5] m, float[3,7,5] t, float[5] u) => (float[5] a, float[3,7] b,"
        " float dot, float[4,5] c, float[3,4,5] d, float[6] e)"
        " { a = MatMul(v, m) b = MatMul(t, u) dot = MatMul(v, v) c = MatMul(w, m)"
        " d = MatMul(w, t) e = MatMul(v, k) }",
        w=normal(4, 7),
        k=normal(7, 6),
    )
    agree(graph, normal_feeds(graph), within=SUMS)


def test_gemm_of_two_activations_agrees() -> None:
    graph = graph_of(
        "g (float[6,7] a, float[7,5] b, float[5,7] d, float[7,6] e, float[1,5] c)"
        " => (float[6,5] w, float[6,5] x, float[6,5] y)"
        " { w = Gemm <alpha = 0.5, beta = 2.0> (a, b, c) x = Gemm <transB = 1> (a, d)"
        " y = Gemm <transA = 1, transB = 1> (e, d, c) }",
    )
    agree(graph, normal_feeds(graph), within=SUMS)


def test_attention_of_several_heads_agrees() -> None:
    graph = graph_of(
        "g (float[1,17,24] x) => (float[1,17,24] y) <int64[4] heads = {1, 17, 3, 8},"
        " int64[3] flat = {1, 17, 24}> {"
        " q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        " q4 = Reshape(q, heads) k4 = Reshape(k, heads) v4 = Reshape(v, heads)"
        " qt = Transpose <perm = [0, 2, 1, 3]> (q4) kt = Transpose <perm = [0, 2, 3, 1]> (k4)"
        " vt = Transpose <perm = [0, 2, 1, 3]> (v4) s = MatMul(qt, kt) n = Mul(s, scale)"
        " p = Softmax(n) o = MatMul(p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o)"
        " of = Reshape(ot, flat) z = MatMul(of, wo) y = Add(z, x) }",
        17,
        scale=np.array(8**-0.5, np.float32),
        **{f"w{k}": normal(24, 24, seed=i) for i, k in enumerate("qkvo")},
    )
    # Four layers deep, values up to 50.
    assert (
        islands(
            agree(
                graph,
                normal_feeds(graph),
                within=Within(rtol=1e-4, atol=1e-3),
            )
        )
        == []
    )


@every_isa
@settings(deadline=None, max_examples=8)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    depth=st.sampled_from([16, 48, 64]),
    heads=st.sampled_from([1, 3]),
)
def test_queries_and_keys_that_lie_row_by_row_agree(
    isa: str, rows: int, columns: int, depth: int, heads: int
) -> None:
    graph = graph_of(
        f"g (float[2,3,{rows},{depth}] q, float[2,{heads},{columns},{depth}] k,"
        f" float[2,1,1,{columns}] mask) => (float[2,3,{rows},{columns}] y)"
        " { t = Transpose <perm = [0, 1, 3, 2]> (k) p = MatMul(q, t) s = Mul(p, half)"
        " y = Add(s, mask) }",
        half=np.array(0.5, np.float32),
    )
    agree(graph, normal_feeds(graph), isa, within=SUMS)


def test_one_query_on_cached_keys_is_a_dot_product_a_key() -> None:
    graph = graph_of(
        "g (float[1,9,1,64] q, float[1,9,33,64] k) => (float[1,9,1,33] y)"
        " { t = Transpose <perm = [0, 1, 3, 2]> (k) y = MatMul(q, t) }"
    )
    assert kernels(graph) == ["dot"]
