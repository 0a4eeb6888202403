"""Coupled dimensions: permuting one changes no answer, selecting is masking the rest."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_model
from tilewright import oracle
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, indices
from tilewright.errors import UnusableInput
from tilewright.frontends import zoo
from tilewright.graph import Graph, constant
from tilewright.passes.clean.fold_constants import FoldConstants
from tilewright.protocol import Context
from tilewright.tools.read_model import read_model

NUMBERS = np.random.default_rng(7)


def graph_of(text: str, **weights: np.ndarray) -> Graph:
    return Graph.from_onnx(small_model(text, 17, **weights)).infer_shapes()


def residual_network() -> Graph:
    return graph_of(
        """g (float[1,3,8,8] x) => (float[1,5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            n = BatchNormalization(a, scale, shift, mean, variance)  r = Relu(n)
            c = Conv <group = 6, pads = [1, 1, 1, 1]> (r, d)
            q = GlobalAveragePool(c)  s1 = Conv(q, e)  s2 = Conv(s1, f)  s = Sigmoid(s2)
            m = Mul(c, s)  p = Conv(m, g)  t = Add(p, r)
            v = GlobalAveragePool(t)  flat = Flatten(v)  y = Gemm(flat, h)
        }""",
        w=normal(6, 3, 3, 3),
        b=normal(6),
        scale=normal(6),
        shift=normal(6),
        mean=normal(6),
        variance=np.abs(normal(6)) + 1,
        d=normal(6, 1, 3, 3),
        e=normal(4, 6, 1, 1),
        f=normal(6, 4, 1, 1),
        g=normal(6, 6, 1, 1),
        h=normal(6, 5),
    )


def grouped_convolutions() -> Graph:
    return graph_of(
        """g (float[1,4,6,6] x) => (float[1,3,h,w] y) {
            a = Conv(x, u)  b = Conv <group = 2, pads = [1, 1, 1, 1]> (a, v, bias)  c = Tanh(b)
            d = ConvTranspose <strides = [2, 2]> (c, t)  e = Relu(d)
            m = MaxPool <kernel_shape = [2, 2]> (e)  y = Conv(m, z)
        }""",
        u=normal(8, 4, 1, 1),
        v=normal(12, 4, 3, 3),
        bias=normal(12),
        t=normal(12, 7, 2, 2),
        z=normal(3, 7, 1, 1),
    )


def attention() -> Graph:
    """Three heads of depth four, and a hidden layer of ten behind."""
    return graph_of(
        """g (float[2,5,8] x) => (float[2,5,8] y) <int64[4] cut = {0, 0, 3, 4},
            int64[3] join = {0, 0, -1}, float root = {2.0}> {
            n = LayerNormalization(x, one, zero)
            q0 = MatMul(n, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, cut)
            q = Transpose <perm = [0, 2, 1, 3]> (q2)
            k0 = MatMul(n, wk)  k2 = Reshape(k0, cut)
            k = Transpose <perm = [0, 2, 3, 1]> (k2)
            v0 = MatMul(n, wv)  v2 = Reshape(v0, cut)
            v = Transpose <perm = [0, 2, 1, 3]> (v2)
            s0 = MatMul(q, k)  s = Div(s0, root)  p = Softmax(s)
            o0 = MatMul(p, v)  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
            o = Reshape(o1, join)  z = MatMul(o, wo)  r = Add(z, x)
            h0 = MatMul(r, w1)  h = Sigmoid(h0)  h2 = MatMul(h, w2)  y = Add(h2, r)
        }""",
        one=normal(8),
        zero=normal(8),
        wq=normal(8, 12),
        bq=normal(12),
        wk=normal(8, 12),
        wv=normal(8, 12),
        wo=normal(12, 8),
        w1=normal(8, 10),
        w2=normal(10, 8),
    )


def rotary_grouped_queries() -> Graph:
    """Two heads of keys, each for three of queries; halves of a depth of six are rotated."""

    def rotated(t: str) -> str:
        return f"""{t}a = Slice({t}, none, half, last)  {t}b = Slice({t}, half, all, last)
            {t}n = Neg({t}b)  {t}s = Concat <axis = -1> ({t}n, {t}a)
            {t}c = Mul({t}, cos)  {t}t = Mul({t}s, sin)  {t}r = Add({t}c, {t}t)"""

    return graph_of(
        f"""g (float[1,5,7] x) => (float[1,5,7] y) <int64[4] cutq = {{1, 5, 6, 6}},
            int64[4] cutk = {{1, 5, 2, 6}}, int64[1] none = {{0}}, int64[1] half = {{3}},
            int64[1] all = {{9223372036854775807}}, int64[1] last = {{3}}, int64[1] two = {{2}},
            int64[5] wide = {{1, 2, 3, 5, 6}}, int64[4] many = {{1, 6, 5, 6}},
            int64[3] join = {{1, 5, 36}}> {{
            q0 = MatMul(x, wq)  q1 = Reshape(q0, cutq)  q = Transpose <perm = [0, 2, 1, 3]> (q1)
            k0 = MatMul(x, wk)  k1 = Reshape(k0, cutk)  k = Transpose <perm = [0, 2, 1, 3]> (k1)
            v0 = MatMul(x, wv)  v1 = Reshape(v0, cutk)  v = Transpose <perm = [0, 2, 1, 3]> (v1)
            {rotated("q")}
            {rotated("k")}
            ku = Unsqueeze(kr, two)  ke = Expand(ku, wide)  km = Reshape(ke, many)
            vu = Unsqueeze(v, two)  ve = Expand(vu, wide)  vm = Reshape(ve, many)
            turned = Transpose <perm = [0, 1, 3, 2]> (km)
            s = MatMul(qr, turned)  p = Softmax(s)
            o0 = MatMul(p, vm)  o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
            o = Reshape(o1, join)  y = MatMul(o, wo)
        }}""",
        wq=normal(7, 36),
        wk=normal(7, 12),
        wv=normal(7, 12),
        wo=normal(36, 7),
        cos=np.tile(normal(1, 1, 5, 3), 2),
        sin=np.tile(normal(1, 1, 5, 3), 2),
    )


def joined_and_split() -> Graph:
    return graph_of(
        """g (int64[2,3] i, float[2,3,4] x) => (float[2,3,3] y) <int64[3] sizes = {2, 5, 3},
            int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}> {
            e = Gather(table, i)  a = MatMul(x, w)  c = Concat <axis = 2> (e, a)
            p, q, r = Split <axis = 2> (c, sizes)  h = Tanh(q)
            d = Concat <axis = -1> (r, h, p)
            u = Unsqueeze(d, one)  v = Squeeze(u, one)
            rows = Slice(v, one, two, one)  more = Concat <axis = 1> (rows, v)
            some = Slice(more, zero, three, one)  y = MatMul(some, z)
        }""",
        table=normal(9, 6),
        w=normal(4, 4),
        z=normal(10, 3),
    )


def quantized() -> Graph:
    return graph_of(
        """g (float[4,6] x) => (float[4,3] y) {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)
            b = DequantizeLinear <axis = 1> (w, v)  h = MatMul(a, b)  r = Relu(h)
            k = ReduceL2 <axes = [1], keepdims = 1> (r)  n = Div(r, k)
            y = Gemm <transB = 1> (n, u)
        }""",
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
        w=NUMBERS.integers(-127, 128, (6, 8)).astype(np.int8),
        v=np.abs(normal(8)) / 100,
        u=normal(3, 8),
    )


Network = Callable[[], Graph]

NETWORKS: list[Network] = [
    residual_network,
    grouped_convolutions,
    attention,
    rotary_grouped_queries,
    joined_and_split,
    quantized,
]


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return {
        t.name: NUMBERS.integers(0, 9, t.shape)
        if t.dtype == np.int64
        else NUMBERS.standard_normal(t.shape).astype(np.float32)
        for t in graph.inputs
    }


def masked(couplings: Couplings, kept: Mapping[Dimension, Sequence[int]]) -> Graph:
    """Return the graph whose nodes add up zeros where `kept` leaves entries out."""
    edited = couplings.graph.edit()
    chosen = {d: np.asarray(entries) for d, entries in kept.items()}
    nodes = {node.name: node for node in edited.nodes}
    for name in {name for d in kept for name in couplings.sums(d)}:
        source = nodes[name].inputs[0]
        for axis, extent in enumerate(couplings.of(source)):
            left = indices(extent, chosen)
            if len(left) == source.shape[axis]:
                continue
            mask = np.zeros(source.shape[axis], np.float32)
            mask[left] = 1
            shape = [-1 if a == axis else 1 for a in range(len(source.shape))]
            factor = constant(f"{name}/mask{axis}", mask.reshape(shape))
            product = gs.Variable(f"{name}/masked{axis}", np.float32, source.shape)
            edited.gs.nodes.append(
                gs.Node("Mul", f"{name}/mul{axis}", {}, [source, factor], [product])
            )
            nodes[name].inputs[0] = source = product
    return edited.sorted()


def shuffled(size: int) -> list[int]:
    return [int(i) for i in NUMBERS.permutation(size)]


def some_of(dimension: Dimension) -> list[int]:
    return shuffled(dimension.size)[: max(1, dimension.size // 2)]


def agree(one: Graph, other: Graph, feeds: Mapping[str, np.ndarray], within: float) -> None:
    expected, found = oracle.run(other, feeds), oracle.run(one, feeds)
    for name, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=within * scale)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_permutation_of_everything_changes_no_answer(network: Network) -> None:
    graph = network()
    couplings = Couplings(graph)
    assert couplings.notes == []
    orders = {d: shuffled(d.size) for d in couplings.places}
    assert orders
    permuted = couplings.permute(orders)
    agree(permuted, graph, feeds_of(graph), 1e-5)
    before, after = graph.constants(), permuted.constants()
    assert any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_selection_is_the_rest_multiplied_by_zero(network: Network) -> None:
    graph = network()
    couplings = Couplings(graph)
    feeds = feeds_of(graph)
    free = [d for d in couplings.places if not d.counted]
    assert free
    for dimension in free:
        kept = {dimension: some_of(dimension)}
        selected = couplings.select(kept)
        assert selected.weight_bytes() < graph.weight_bytes()
        agree(selected, masked(couplings, kept), feeds, 1e-6)
    every = {d: some_of(d) for d in free}
    agree(couplings.select(every), masked(couplings, every), feeds, 1e-6)


def test_heads_and_their_depths_are_dimensions_of_their_own() -> None:
    couplings = Couplings(attention())
    heads, depth = couplings.dimension("wq", 1)
    assert (heads.size, depth.size) == (3, 4)
    assert couplings.dimension("wk", 1) == [heads, depth]
    # Queries meet keys in one depth, and what is made of values has another.
    assert couplings.dimension("wv", 1)[0] is heads
    assert couplings.dimension("wo", 0) == couplings.dimension("wv", 1)
    assert couplings.dimension("wv", 1)[1] is not depth


def test_what_is_normalized_over_keeps_its_size() -> None:
    couplings = Couplings(attention())
    # The residual stream is an input and an output, too.
    (features,) = couplings.dimension("wo", 1)
    assert "callers see" in features.fixed
    assert features not in couplings.places


def test_halves_that_are_rotated_and_keys_of_several_queries_go_together() -> None:
    couplings = Couplings(rotary_grouped_queries())
    keys, queries, *halves = couplings.dimension("wq", 1)
    assert (keys.size, queries.size) == (2, 3)
    assert [h.size for h in halves] == [3, 3]
    assert halves[0] is halves[1]
    assert couplings.dimension("wk", 1) == [keys, *halves]


def test_a_group_of_a_convolution_can_go_and_so_can_a_channel_of_every_group() -> None:
    couplings = Couplings(grouped_convolutions())
    groups, inputs = couplings.dimension("u", 0)
    assert (groups.size, inputs.size) == (2, 4)
    smaller = couplings.select({groups: [1], inputs: [0, 3]})
    weights = smaller.constants()
    assert weights["v"].shape == (6, 2, 3, 3)
    assert next(n for n in smaller.nodes if len(n.inputs) == 3).attrs["group"] == 1
    before = couplings.graph.constants()
    np.testing.assert_array_equal(weights["v"], before["v"][6:, [0, 3]])
    np.testing.assert_array_equal(weights["u"], before["u"][[4, 7]])


def test_of_parts_that_are_split_without_sizes_each_loses_its_own() -> None:
    text = """g (float[1,6] x) => (float[1,3] y) {
        a = MatMul(x, w)  b, c = Split <axis = -1, num_outputs = 2> (a)  d = Sigmoid(b)
        e = MatMul(d, u)  f = MatMul(c, v)  y = Add(e, f)
    }"""
    weights = {"w": normal(6, 8), "u": normal(4, 3), "v": normal(4, 3)}
    graph = Graph.from_onnx(small_model(text, 18, **weights)).infer_shapes()
    couplings = Couplings(graph)
    left, right = couplings.dimension("w", 1)
    found = couplings.select({left: [0, 2, 3], right: [1]})
    x = normal(1, 6, seed=3)
    hidden = x @ weights["w"][:, [0, 2, 3, 5]]
    expected = (1 / (1 + np.exp(-hidden[:, :3]))) @ weights["u"][[0, 2, 3]]
    expected += hidden[:, 3:] @ weights["v"][[1]]
    # Float32 sums of a few products.
    np.testing.assert_allclose(oracle.run(found, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_node_without_a_rule_is_noted_and_its_axes_stay() -> None:
    graph = graph_of(
        """g (float[1,4] x) => (float[1,4] y) <int64[1] by = {1}> {
            a = MatMul(x, w)  b = CumSum(a, by)  c = MatMul(b, v)  d = Relu(c)  y = MatMul(d, u)
        }""",
        w=normal(4, 6),
        v=normal(6, 5),
        u=normal(5, 4),
    )
    couplings = Couplings(graph)
    assert [note.node for note in couplings.notes] == ["CumSum_1"]
    assert "CumSum" in couplings.notes[0].reason
    assert [d.size for d in couplings.places] == [5]


def test_what_a_branch_reads_stays_weights_too() -> None:
    graph = graph_of(
        """g (float[1,6] x, bool c) => (float[1,6] y, float[1,8] z) {
            h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v)
            z = If(c) <
                then_branch = t () => (float[1,8] a) { a = MatMul(x, w) },
                else_branch = e () => (float[1,8] b) { b = Neg(r) }>
        }""",
        w=normal(6, 8),
        v=normal(8, 6),
    )
    couplings = Couplings(graph)
    assert [note.node for note in couplings.notes] == ["If_3"]
    assert list(couplings.places) == []


def test_axes_that_reshapes_cut_differently_stay() -> None:
    graph = graph_of(
        """g (float[1,4] x) => (float[1,4] y)
            <int64[3] a = {1, 4, 3}, int64[3] b = {1, 3, 4}, int64[2] c = {1, 12}> {
            h = MatMul(x, w)  p = Reshape(h, a)  q = Relu(p)  r = Reshape(q, c)
            s = Reshape(h, b)  t = Relu(s)  u = Reshape(t, c)  z = Add(r, u)  y = MatMul(z, v)
        }""",
        w=normal(4, 12),
        v=normal(12, 4),
    )
    couplings = Couplings(graph)
    assert list(couplings.places) == []
    assert "do not fit" in couplings.dimension("w", 1)[0].fixed


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "not different entries"),
        ([0, 0], "not different"),
        ([9], "which has 6"),
        ([-1], "6"),
    ],
)
def test_entries_that_are_none_are_refused(kept: list[int], message: str) -> None:
    couplings = Couplings(residual_network())
    (channels,) = couplings.dimension("w", 0)
    with pytest.raises(UnusableInput, match=message):
        couplings.select({channels: kept})


def test_an_order_that_leaves_something_out_is_refused() -> None:
    couplings = Couplings(residual_network())
    (channels,) = couplings.dimension("w", 0)
    with pytest.raises(UnusableInput, match='no order of the 6 entries of axis 0 of "w"'):
        couplings.permute({channels: [0, 1, 2, 3, 4, 4]})


def test_what_callers_see_is_neither_permuted_nor_selected_from() -> None:
    couplings = Couplings(residual_network())
    (outputs,) = couplings.dimension("h", 1)
    with pytest.raises(UnusableInput, match='an axis of "y", which callers see'):
        couplings.permute({outputs: [4, 3, 2, 1, 0]})
    with pytest.raises(UnusableInput, match="callers see"):
        couplings.select({outputs: [0]})


def test_a_split_is_a_selection_for_each_group() -> None:
    couplings = Couplings(residual_network())
    (channels,) = couplings.dimension("w", 0)
    first, second = couplings.split(channels, [[0, 1, 2], [3, 2]])
    assert first.constants()["w"].shape == (3, 3, 3, 3)
    np.testing.assert_array_equal(
        second.constants()["b"], couplings.graph.constants()["b"][[3, 2]]
    )


def test_the_networkx_view_joins_dimensions_and_axes() -> None:
    couplings = Couplings(residual_network())
    (channels,) = couplings.dimension("w", 0)
    view = couplings.as_networkx()
    assert set(view[channels]) == set(couplings.places[channels])
    assert ("p", 1) in view[channels]
    assert ("e", 1) in view[channels]


@pytest.mark.zoo
@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_of_the_zoo_is_followed(name: str) -> None:
    graph = read_model(f"zoo:{name}").graph
    graph = FoldConstants()(graph, Context(DEVICE, None)).graph
    couplings = Couplings(graph)
    assert couplings.notes == []
    (feeds,) = zoo.calibration(name, 1)
    orders = {d: shuffled(d.size) for d in couplings.places}
    assert off(couplings.permute(orders), graph, feeds) < 1e-5
    free = [d for d in couplings.places if not d.counted]
    for dimension in (free[0], free[len(free) // 2], free[-1]):
        kept = {dimension: some_of(dimension)}
        # Exact but for sums in another order, as the permutation is.
        assert off(couplings.select(kept), masked(couplings, kept), feeds) < 1e-5


def off(one: Graph, other: Graph, feeds: Mapping[str, np.ndarray]) -> float:
    """Return the largest error of an output, relative to it, both as root mean squares."""
    expected, found = oracle.run(other, feeds), oracle.run(one, feeds)
    return max(
        float(np.linalg.norm(found[name] - values) / np.linalg.norm(values))
        for name, values in expected.items()
    )
