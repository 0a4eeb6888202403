"""Outputs in an order in which tiles can be pruned with less harm."""

from dataclasses import replace

import numpy as np
import pytest

from tests.core.test_coupling import attention
from tests.graphs import CHANNELS, DEVICE, agree, correlated, three_layers
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.passes.prune.match import MatchTiles
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.plan import Plan
from tilewright.protocol import Context

EVERY = MatchTiles(sparsity=0.5, tile="4x1", ends=True, smallest=0)


def context(data: Calibration | None = None, plan: Plan | None = None) -> Context:
    return Context(CHANNELS, data, plan=plan)


def two_kinds() -> Graph:
    """Return a hidden layer whose even features read the first inputs, odd ones the rest."""
    w1 = normal(12, 32)
    w1[6:, ::2] *= 0.01
    w1[:6, 1::2] *= 0.01
    return small_graph(
        """g (float[1,16,12] x) => (float[1,16,6] y) {
            a = MatMul(x, w1)  b = Add(a, b1)  r = Tanh(b)  y = MatMul(r, w2)
        }""",
        w1=w1,
        b1=normal(32),
        w2=normal(32, 6),
    )


def calibration(graph: Graph) -> Calibration:
    return Calibration.from_arrays({"x": correlated(40, 16, 12)}, graph.inputs)


def damage(pruned: Graph, dense: Graph) -> float:
    """Return the relative error of y on inputs that no pass has seen."""
    feeds = [{"x": x[None]} for x in correlated(10, 16, 12, seed=2)]
    expected, found = (
        np.stack([oracle.run(g, f)["y"] for f in feeds]) for g in (dense, pruned)
    )
    return float(np.square(found - expected).sum() / np.square(expected).sum())


@pytest.mark.parametrize("tile", ["2x1", "4x1", "8x1", "4x2"])
def test_a_permutation_changes_no_output(tile: str) -> None:
    """Of hidden features; of depths for tiles of two rows, of heads for tiles of eight."""
    graph = attention()
    x = np.random.default_rng(0).standard_normal((40, 2, 5, 8), np.float32)
    data = Calibration.from_feeds([{"x": each} for each in x], graph.inputs)
    found = replace(EVERY, tile=tile)(graph, context(data))
    before, after = graph.constants(), found.graph.constants()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    agree(graph, found.graph, {"x": x[0]})


def test_depths_stay_within_their_heads_and_all_heads_have_one_order() -> None:
    graph = attention()
    after = replace(EVERY, tile="2x1")(graph, context()).graph.constants()
    before = graph.constants()
    for one, other in (("wq", "wk"), ("wv", "wv")):
        heads, permuted = before[one].reshape(8, 3, 4), after[one].reshape(8, 3, 4)
        orders = [
            [depth_of(permuted[:, h, i], heads[:, h]) for i in range(4)] for h in range(3)
        ]
        assert orders[0] == orders[1] == orders[2]
        assert sorted(orders[0]) == [0, 1, 2, 3]
        np.testing.assert_array_equal(
            before[other].reshape(8, 3, 4)[:, :, orders[0]], after[other].reshape(8, 3, 4)
        )


def depth_of(column: np.ndarray, head: np.ndarray) -> int:
    return int((head == column[:, None]).all(axis=0).argmax())


def test_channels_between_convolutions_are_permuted_with_what_lies_between() -> None:
    graph = small_graph(
        """g (float[1,3,6,6] x) => (float[1,2,2,2] y) {
            a = Conv(x, w1, b1)  n = BatchNormalization(a, s, b2, m, v)
            d = Conv <group = 8> (n, wd)  r = Relu(d)  y = Conv(r, w2)
        }""",
        w1=normal(8, 3, 3, 3),
        b1=normal(8),
        s=normal(8),
        b2=normal(8),
        m=normal(8),
        v=np.abs(normal(8)),
        wd=normal(8, 1, 2, 2),
        w2=normal(2, 8, 2, 2),
    )
    found = EVERY(graph, context())
    order = [
        int((graph.constants()["b1"] == value).argmax())
        for value in found.graph.constants()["b1"]
    ]
    assert order != list(range(8))
    for name in ("w1", "s", "m", "wd"):
        np.testing.assert_array_equal(
            found.graph.constants()[name], graph.constants()[name][order]
        )
    agree(graph, found.graph, {"x": normal(1, 3, 6, 6)})


def test_pruning_hurts_far_less_behind_it() -> None:
    graph = two_kinds()
    data = calibration(graph)
    matched = EVERY(graph, context(data)).graph
    last = linear_name(graph, "w2")
    prune = PruneTiles(sparsity=0.5, tile="4x1", ends=True, smallest=0, skip=(last,))
    with_it = prune(matched, context(data)).graph
    without = prune(graph, context(data)).graph
    assert damage(with_it, graph) < 0.1 * damage(without, graph)


def test_rows_that_are_stored_one_by_one_stay_and_are_pruned_as_well() -> None:
    graph = two_kinds()
    data = calibration(graph)
    positions = Context(DEVICE, data)
    found = EVERY(graph, positions)
    assert {note.reason for note in found.notes} == {
        "prune-tiles takes any rows of it together"
    }
    last = linear_name(graph, "w2")
    prune = PruneTiles(sparsity=0.5, tile="4x1", ends=True, smallest=0, skip=(last,))
    scattered = prune(graph, positions).graph
    neighbours = prune(graph, context(data)).graph
    assert damage(scattered, graph) < 0.1 * damage(neighbours, graph)


def linear_name(graph: Graph, weight: str) -> str:
    return next(str(n.name) for n in graph.nodes if weight in [t.name for t in n.inputs])


def test_outputs_that_callers_see_stay_in_order() -> None:
    found = EVERY(three_layers(), context())
    np.testing.assert_array_equal(
        np.sort(found.graph.constants()["w3"], axis=0),
        np.sort(three_layers().constants()["w3"], axis=0),
    )
    said = {note.node: note.reason for note in found.notes}
    assert said[linear_name(three_layers(), "w3")] == (
        'its outputs stay in order: it is an axis of "y", which callers see'
    )


def test_a_note_says_what_an_order_is_worth() -> None:
    graph = two_kinds()
    found = EVERY(graph, context())
    reason = next(n.reason for n in found.notes if n.node == linear_name(graph, "w1"))
    after, before = (
        float(part.strip(" not")[: part.strip(" not").index("%")])
        for part in (reason.split("go are")[1], reason.split("worth,")[1])
    )
    # Half of the even rows' inputs, and of the odd ones', are worth a hundredth squared.
    assert after < 0.1 < 10 < before


def test_a_plan_says_which_layers_in_which_tiles() -> None:
    graph = two_kinds()
    name = linear_name(graph, "w1")
    plan = Plan({name: {"sparsity": 0.5, "tile": "4x1"}})
    np.testing.assert_array_equal(
        MatchTiles()(graph, context(plan=plan)).graph.constants()["w1"],
        EVERY(graph, context()).graph.constants()["w1"],
    )
    untouched = MatchTiles()(graph, context(plan=Plan({}))).graph
    np.testing.assert_array_equal(untouched.constants()["w1"], graph.constants()["w1"])


def test_layers_that_are_not_pruned_have_no_say() -> None:
    graph = two_kinds()
    found = replace(EVERY, skip=(linear_name(graph, "w1"),))(graph, context())
    np.testing.assert_array_equal(found.graph.constants()["w1"], graph.constants()["w1"])
    with pytest.raises(UnknownName, match="nothing"):
        replace(EVERY, skip=("nothing",))(graph, context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0, but must be a share"),
        ({"criterion": "luck"}, "criterion is luck"),
        ({"damp": 0.0}, "damp is 0.0, but must be a positive number"),
        ({"smallest": -1}, "smallest is -1, but must be a whole number from 0 on"),
        ({"tile": "4"}, "tile is 4, but must be outputs x inputs"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: dict[str, float | str], message: str
) -> None:
    with pytest.raises(UnusableInput, match=message):
        MatchTiles(**options)  # type: ignore[arg-type]
