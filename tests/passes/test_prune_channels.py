"""Channels, hidden features and heads that are taken out, and what is left in their place."""

from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import DEVICE, context, correlated, three_layers
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.channels import PruneChannels
from tilewright.plan import Plan
from tilewright.protocol import Context, Outcome

LAYERS = [node.name for node in three_layers().nodes if node.op == "MatMul"]
EVERY = PruneChannels(sparsity=0.5, multiple=1, ends=True, smallest=0)


def calibration(samples: int = 40) -> Calibration:
    return Calibration.from_arrays({"x": correlated(samples, 16, 12)}, three_layers().inputs)


def prune(step: PruneChannels, graph: Graph | None = None, **known: Any) -> Outcome:
    return step(graph or three_layers(), context(**known))


def damage(pruned: Graph, dense: Graph, samples: int = 10) -> float:
    """Return the relative error of y on inputs that no pass has seen."""
    total, size = 0.0, 0.0
    expecting, finding = oracle.session(dense), oracle.session(pruned)
    for x in correlated(samples, 16, 12, seed=2):
        expected = oracle.outputs_of(expecting, {"x": x[None]})["y"]
        found = oracle.outputs_of(finding, {"x": x[None]})["y"]
        total += float(np.square(found - expected).sum())
        size += float(np.square(expected - expected.mean()).sum())
    return total / size


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in graph.constants().items()}


def test_weights_of_removed_features_are_gone_on_both_sides() -> None:
    found = prune(EVERY, calibration=calibration())
    assert shapes(found.graph) == {
        "w1": (12, 10),
        "b1": (10,),
        "w2": (10, 4),
        "b2": (4,),
        "w3": (4, 6),
    }
    onnx.checker.check_model(found.graph.to_onnx(), full_check=True)
    assert [note.reason for note in found.notes] == [
        "reads 10 of 20: the others are removed",
        "reads 4 of 8: the others are removed",
    ]


def test_obs_hurts_far_less_than_magnitude() -> None:
    data = calibration()
    by_magnitude = prune(
        PruneChannels(0.5, "magnitude", multiple=1, ends=True, smallest=0)
    ).graph
    by_obs = prune(EVERY, calibration=data).graph
    assert damage(by_obs, three_layers()) < 0.5 * damage(by_magnitude, three_layers())


def test_features_that_say_what_others_say_go_without_a_loss() -> None:
    """Of the hidden features each is there twice, with other weights behind."""
    w1, b1 = normal(12, 8), normal(8)
    graph = small_graph(
        """g (float[1,16,12] x) => (float[1,16,6] y) {
            a = MatMul(x, w1)  b = Add(a, b1)  r = Tanh(b)  y = MatMul(r, w2)
        }""",
        w1=np.tile(w1, 2),
        b1=np.tile(b1, 2),
        w2=normal(16, 6),
    )
    step = PruneChannels(0.5, multiple=1, ends=True, smallest=0, damp=1e-6)
    pruned = prune(step, graph, calibration=calibration()).graph
    kept = pruned.constants()["w1"]
    assert kept.shape == (12, 8)
    assert np.unique(kept, axis=1).shape == (12, 8)
    # What damping leaves of the solution.
    assert damage(pruned, graph) < 1e-6


def test_the_feature_that_goes_is_the_one_that_costs_least() -> None:
    graph = small_graph(
        """g (float[1,16,12] x) => (float[1,16,5] y) {
            a = MatMul(x, w1)  r = Relu(a)  y = MatMul(r, w2)
        }""",
        w1=normal(12, 6),
        w2=normal(6, 5, seed=1),
    )
    data = calibration()
    step = PruneChannels(1 / 6, multiple=1, ends=True, smallest=0, damp=1e-6)
    kept = prune(step, graph, calibration=data).graph.constants()["w1"]
    hidden = np.concatenate(
        [
            np.maximum(feeds["x"].reshape(-1, 12) @ graph.constants()["w1"], 0)
            for feeds in data.feeds()
        ]
    ).astype(np.float64)
    wanted = hidden @ graph.constants()["w2"]

    def loss(support: tuple[int, ...]) -> float:
        part = hidden[:, support]
        best = np.linalg.lstsq(part, wanted, rcond=None)[0]
        return float(np.square(part @ best - wanted).sum())

    best = min(combinations(range(6), 5), key=loss)
    np.testing.assert_array_equal(kept, graph.constants()["w1"][:, best])


def test_what_moves_the_answers_least_goes_first_with_a_global_budget() -> None:
    """Half of the first layer's features do nothing; hardly any of the second's can go."""
    w1, w2 = normal(12, 16), normal(16, 16)
    w2[8:] = 0
    graph = small_graph(
        """g (float[1,16,12] x) => (float[1,16,16] y) {
            a = MatMul(x, w1)  r = Tanh(a)  c = MatMul(r, w2)  s = Tanh(c)  y = MatMul(s, w3)
        }""",
        w1=w1,
        w2=w2,
        w3=np.eye(16, dtype=np.float32),
    )
    step = PruneChannels(0.2, allocate="global", multiple=1, ends=True, smallest=0)
    pruned = prune(step, graph, calibration=calibration()).graph
    assert shapes(pruned)["w1"][1] <= 11
    assert shapes(pruned)["w2"][1] >= 15
    assert damage(pruned, graph) < 0.5 * damage(
        prune(
            PruneChannels(0.2, multiple=1, ends=True, smallest=0),
            graph,
            calibration=calibration(),
        ).graph,
        graph,
    )


def test_a_global_budget_is_spent_in_multiplications() -> None:
    step = PruneChannels(0.25, allocate="global", multiple=1, ends=True, smallest=0)
    before, after = three_layers(), prune(step, calibration=calibration()).graph
    macs = [
        sum(layer.weight.values.size for layer in linear_layers(g)) for g in (before, after)
    ]
    # Of the 440 and 208 that both hidden layers' features stand for a quarter is saved; what
    # goes on both sides of w2 counts once only.
    assert 0.1 * (440 + 208) < macs[0] - macs[1] <= 0.25 * (440 + 208) + 32


def test_a_global_budget_needs_data() -> None:
    with pytest.raises(UnusableInput, match=r"allocate=global .* Give --calibration"):
        prune(PruneChannels(allocate="global"))


def inverted_bottleneck() -> tuple[Graph, Calibration]:
    graph = small_graph(
        """g (float[1,6,8,8] x) => (float[1,6,8,8] y) {
            a = Conv(x, w, b)  r = Clip(a, low, high)
            d = Conv <group = 24, pads = [1, 1, 1, 1]> (r, u)  s = Relu(d)
            m = GlobalAveragePool(s)  n = Conv(m, e)  o = Conv(n, f)  g = Sigmoid(o)
            t = Mul(s, g)  p = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t, v, c)
            y = Add(p, x)
        }""",
        w=normal(24, 6, 1, 1),
        b=normal(24),
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
        u=normal(24, 1, 3, 3),
        e=normal(4, 24, 1, 1),
        f=normal(24, 4, 1, 1),
        v=normal(6, 24, 3, 3),
        c=normal(6),
    )
    x = np.random.default_rng(3).standard_normal((30, 6, 8, 8)).astype(np.float32)
    return graph, Calibration.from_arrays({"x": x}, graph.inputs)


def test_dimensions_that_several_layers_read_stay() -> None:
    graph, data = inverted_bottleneck()
    found = prune(EVERY, graph, calibration=data)
    # The gate reads the channels too; its own four are read by one layer alone.
    assert shapes(found.graph)["e"] == (2, 24, 1, 1)
    assert shapes(found.graph)["v"] == (6, 24, 3, 3)
    assert any(note.reason.startswith("none of its 24 inputs: ") for note in found.notes)


def attention() -> Graph:
    return small_graph(
        """g (float[1,16,12] x) => (float[1,16,12] y) <int64[4] cut = {1, 16, 4, 3},
            int64[3] join = {1, 16, 12}> {
            q0 = MatMul(x, wq)  q1 = Reshape(q0, cut)  q = Transpose <perm = [0, 2, 1, 3]> (q1)
            k0 = MatMul(x, wk)  k1 = Reshape(k0, cut)  k = Transpose <perm = [0, 2, 3, 1]> (k1)
            v0 = MatMul(x, wv)  v1 = Reshape(v0, cut)  v = Transpose <perm = [0, 2, 1, 3]> (v1)
            s = MatMul(q, k)  p = Softmax(s)  o0 = MatMul(p, v)
            o1 = Transpose <perm = [0, 2, 1, 3]> (o0)  o = Reshape(o1, join)  y = MatMul(o, wo)
        }""",
        wq=normal(12, 12) / 4,
        wk=normal(12, 12) / 4,
        wv=normal(12, 12),
        wo=normal(12, 12),
    )


def test_heads_go_with_their_queries_keys_and_values() -> None:
    graph = attention()
    found = prune(EVERY, graph, calibration=calibration())
    assert shapes(found.graph)["wo"] == (6, 12)
    assert all(shapes(found.graph)[name] == (12, 6) for name in ("wq", "wk", "wv"))
    assert damage(found.graph, graph) < 0.6
    reasons = [note.reason for note in found.notes]
    assert "none of its 3 inputs: others of its inputs go" in reasons


def test_what_is_left_is_a_multiple_where_there_is_much_more() -> None:
    hidden = PruneChannels(0.3, multiple=4, ends=True, smallest=0)
    found = shapes(prune(hidden, calibration=calibration()).graph)
    assert found["w1"] == (12, 16)  # 14 of 20, in fours
    assert found["w2"][1] == 6  # 5.6 of 8: fewer than four times four


def test_what_the_last_layer_reads_stays_unless_asked_for() -> None:
    found = prune(PruneChannels(0.5, multiple=1, smallest=0), calibration=calibration())
    assert shapes(found.graph)["w3"] == (8, 6)
    assert any("last layer" in note.reason for note in found.notes)


def test_small_dimensions_and_skipped_layers_stay() -> None:
    _, second, third = LAYERS
    found = prune(PruneChannels(0.5, multiple=1, ends=True, smallest=300, skip=(second,)))
    assert shapes(found.graph) == shapes(three_layers())
    assert [(note.node, note.reason) for note in found.notes] == [
        (second, "none of its 20 inputs: named by skip"),
        (third, "none of its 8 inputs: they hold 216 weights, fewer than smallest=300"),
    ]


def test_a_plan_says_which_layers_lose_how_many_of_their_inputs() -> None:
    third = LAYERS[2]
    plan = Plan({third: {"channels": 0.25}})
    found = shapes(prune(EVERY, calibration=calibration(), plan=plan).graph)
    assert (found["w1"], found["w3"]) == ((12, 20), (6, 6))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"nowhere": {"channels": 0.5}}, '"nowhere" is not a linear layer'),
        ({LAYERS[1]: {"channels": 1.2}}, "is 1.2, not a number from 0 to below 1"),
        ({LAYERS[1]: {"channels": "half"}}, "is 'half', not a number"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(levels: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        prune(EVERY, plan=Plan(levels))


def test_a_plan_takes_heads_or_is_refused_where_nothing_can_go() -> None:
    *_, last = [node.name for node in attention().nodes if node.op == "MatMul"]
    plan = Plan({last: {"channels": 0.5}})
    found = prune(EVERY, attention(), calibration=calibration(), plan=plan)
    assert shapes(found.graph)["wo"] == (6, 12)
    graph, _ = inverted_bottleneck()
    reader = next(n.name for n in graph.nodes if any(t.name == "v" for t in n.inputs))
    with pytest.raises(
        UnusableInput, match=r"no inputs of .* can be removed: .* read them too"
    ):
        prune(EVERY, graph, plan=Plan({reader: {"channels": 0.5}}))


def test_answers_that_are_no_floats_cannot_be_compared() -> None:
    graph = small_graph(
        """g (float[1,16,12] x) => (int64[1,16] y) {
            a = MatMul(x, w1)  r = Relu(a)  b = MatMul(r, w2)
            y = ArgMax <axis = 2, keepdims = 0> (b)
        }""",
        w1=normal(12, 8),
        w2=normal(8, 5),
    )
    step = PruneChannels(0.5, allocate="global", multiple=1, ends=True, smallest=0)
    with pytest.raises(UnusableInput, match="no finite floats"):
        prune(step, graph, calibration=calibration())


def test_without_data_features_go_by_magnitude_and_a_note_says_so() -> None:
    told: list[str] = []
    found = EVERY(three_layers(), Context(DEVICE, None, report=told.append))
    by_magnitude = prune(
        PruneChannels(0.5, "magnitude", multiple=1, ends=True, smallest=0)
    ).graph
    assert any("Give --calibration" in text for text in told)
    assert any("no calibration data" in note.reason for note in found.notes)
    for name, values in by_magnitude.constants().items():
        np.testing.assert_array_equal(found.graph.constants()[name], values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"criterion": "luck"}, "criterion is luck"),
        ({"allocate": "fairly"}, "allocate is fairly"),
        ({"multiple": 0}, "multiple is 0"),
        ({"damp": 0.0}, "damp is 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        PruneChannels(**options)


def test_an_unknown_layer_to_skip_is_refused() -> None:
    with pytest.raises(UnknownName, match="elsewhere"):
        prune(PruneChannels(skip=("elsewhere",)))
