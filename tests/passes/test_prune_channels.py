"""Channels, hidden features and heads that are taken out, and what is left in their place."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import DEVICE, agree, context, correlated, three_layers
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.channels import PruneChannels
from tilewright.plan import Plan, channels_of
from tilewright.protocol import Context, Outcome
from tilewright.removed import removed

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


def test_channels_that_a_gate_reads_too_go_from_both() -> None:
    graph, data = inverted_bottleneck()
    found = prune(EVERY, graph, calibration=data)
    after = shapes(found.graph)
    assert (after["w"], after["u"]) == ((12, 6, 1, 1), (12, 1, 3, 3))
    assert (after["e"], after["f"], after["v"]) == ((2, 12, 1, 1), (12, 2, 1, 1), (6, 12, 3, 3))


def residual() -> tuple[Graph, Calibration]:
    """Return a stem, two blocks around a stream of 16 channels, and a head."""
    graph = small_graph(
        """g (float[1,4,6,6] x) => (float[1,5,6,6] y) {
            s = Conv <pads = [1, 1, 1, 1]> (x, stem)
            a = Conv(s, up1, b1)  c = Relu(a)  d = Conv(c, down1, b2)  t = Add(s, d)
            e = Conv <pads = [1, 1, 1, 1]> (t, up2)  f = Relu(e)  h = Conv(f, down2)
            u = Add(t, h)  y = Conv(u, head, b3)
        }""",
        stem=normal(16, 4, 3, 3),
        up1=normal(24, 16, 1, 1, seed=1),
        b1=normal(24, seed=2),
        down1=normal(16, 24, 1, 1, seed=3) / 8,
        b2=normal(16, seed=4),
        up2=normal(24, 16, 3, 3, seed=5) / 8,
        down2=normal(16, 24, 1, 1, seed=6) / 8,
        head=normal(5, 16, 1, 1, seed=7),
        b3=normal(5, seed=8),
    )
    x = np.random.default_rng(3).standard_normal((30, 4, 6, 6)).astype(np.float32)
    return graph, Calibration.from_arrays({"x": x}, graph.inputs)


def image_damage(pruned: Graph, dense: Graph) -> float:
    """Return the relative error of y on images that no pass has seen."""
    x = np.random.default_rng(4).standard_normal((8, 1, 4, 6, 6)).astype(np.float32)
    sessions = oracle.session(dense), oracle.session(pruned)
    expected, found = (
        np.concatenate([oracle.outputs_of(session, {"x": one})["y"] for one in x])
        for session in sessions
    )
    return float(np.square(found - expected).sum() / np.square(expected).sum())


def test_a_residual_stream_loses_channels_wherever_it_runs() -> None:
    graph, data = residual()
    found = prune(
        PruneChannels(0.25, multiple=1, ends=True, smallest=0), graph, calibration=data
    )
    assert shapes(found.graph) == {
        "stem": (12, 4, 3, 3),
        "up1": (18, 12, 1, 1),
        "b1": (18,),
        "down1": (12, 18, 1, 1),
        "b2": (12,),
        "up2": (18, 12, 3, 3),
        "down2": (12, 18, 1, 1),
        "head": (5, 12, 1, 1),
        "b3": (5,),
    }
    onnx.checker.check_model(found.graph.to_onnx(), full_check=True)


def reading(graph: Graph, weight: str) -> str:
    """Return the name of the layer with this weight."""
    return next(layer.name for layer in linear_layers(graph) if layer.weight.name == weight)


def test_what_is_left_of_a_residual_stream_answers_like_the_masked_network() -> None:
    graph, _ = residual()
    step = PruneChannels(criterion="magnitude", ends=True, smallest=0)
    pruned = prune(step, graph, plan=Plan({reading(graph, "up2"): {"channels": 0.25}})).graph
    gone = ~np.isin(graph.constants()["b2"], pruned.constants()["b2"])
    assert gone.sum() == 4
    masked = graph.edit()
    for layer in linear_layers(masked):
        if layer.weight.name in ("up1", "up2", "head"):
            matrix = layer.weight.values.copy()
            matrix[:, gone] = 0
            layer.replace(matrix)
    x = np.random.default_rng(4).standard_normal((1, 4, 6, 6)).astype(np.float32)
    agree(masked, pruned, {"x": x})


def test_readers_of_a_stream_are_refitted_one_after_the_other() -> None:
    graph, data = residual()
    by_magnitude = PruneChannels(0.25, "magnitude", multiple=1, ends=True, smallest=0)
    by_obs = PruneChannels(0.25, multiple=1, ends=True, smallest=0)
    hurt = image_damage(prune(by_magnitude, graph).graph, graph)
    assert image_damage(prune(by_obs, graph, calibration=data).graph, graph) < 0.5 * hurt


def test_a_stream_loses_channels_with_a_global_budget_too() -> None:
    graph, data = residual()
    step = PruneChannels(0.6, allocate="global", multiple=1, ends=True, smallest=0)
    found = shapes(prune(step, graph, calibration=data).graph)
    assert found["stem"][0] < 16
    assert {found[name][1] for name in ("up1", "up2", "head")} == {found["stem"][0]}


def dense_net() -> tuple[Graph, Calibration]:
    """Return two convolutions, each of which reads all that was made before it."""
    graph = small_graph(
        """g (float[1,4,6,6] x) => (float[1,5,6,6] y) {
            a = Conv(x, first)  b = Relu(a)
            c = Conv <pads = [1, 1, 1, 1]> (b, second)  d = Relu(c)
            e = Concat <axis = 1> (b, d)  y = Conv(e, third)
        }""",
        first=normal(8, 4, 1, 1),
        second=normal(12, 8, 3, 3),
        third=normal(5, 20, 1, 1),
    )
    x = np.random.default_rng(3).standard_normal((30, 4, 6, 6)).astype(np.float32)
    return graph, Calibration.from_arrays({"x": x}, graph.inputs)


def test_of_joined_channels_each_part_loses_its_own() -> None:
    graph, data = dense_net()
    found = prune(
        PruneChannels(0.25, multiple=1, ends=True, smallest=0), graph, calibration=data
    )
    assert shapes(found.graph) == {
        "first": (6, 4, 1, 1),
        "second": (9, 6, 3, 3),
        "third": (5, 15, 1, 1),
    }
    assert image_damage(found.graph, graph) < 0.2


def test_a_grouped_convolution_loses_the_same_inputs_in_each_group() -> None:
    graph = small_graph(
        """g (float[1,4,6,6] x) => (float[1,6,6,6] y) {
            a = Conv(x, first, b)  r = Relu(a)
            y = Conv <group = 2, pads = [1, 1, 1, 1]> (r, second, c)
        }""",
        first=normal(16, 4, 1, 1),
        b=normal(16),
        second=normal(6, 8, 3, 3),
        c=normal(6, seed=1),
    )
    x = np.random.default_rng(3).standard_normal((30, 4, 6, 6)).astype(np.float32)
    data = Calibration.from_arrays({"x": x}, graph.inputs)
    pruned = prune(
        PruneChannels(0.25, multiple=1, ends=True, smallest=0), graph, calibration=data
    ).graph
    assert (shapes(pruned)["first"], shapes(pruned)["second"]) == ((12, 4, 1, 1), (6, 6, 3, 3))
    by_magnitude = prune(
        PruneChannels(0.25, "magnitude", multiple=1, ends=True, smallest=0), graph
    ).graph
    assert image_damage(pruned, graph) < 0.5 * image_damage(by_magnitude, graph)


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
        (second, f"none of its 20 inputs: {second} is named by skip"),
        (third, "none of its 8 inputs: they hold 216 weights, fewer than smallest=300"),
    ]


def test_a_plan_says_which_layers_lose_how_many_of_their_inputs() -> None:
    third = LAYERS[2]
    plan = Plan({third: {"channels": 0.25}})
    found = shapes(prune(EVERY, calibration=calibration(), plan=plan).graph)
    assert (found["w1"], found["w3"]) == ((12, 20), (6, 6))


def test_a_plan_speaks_of_joined_parts_one_by_one() -> None:
    graph, data = dense_net()
    plan = Plan({reading(graph, "third"): {"channels": "0.5|0.25"}})
    found = shapes(prune(EVERY, graph, calibration=data, plan=plan).graph)
    assert (found["first"], found["second"]) == ((4, 4, 1, 1), (9, 4, 3, 3))


def heads() -> tuple[Graph, Calibration]:
    return attention(), calibration()


@pytest.mark.parametrize("network", [heads, residual, dense_net, inverted_bottleneck])
def test_a_plan_of_what_was_seen_to_go_takes_the_same_again(
    network: Callable[[], tuple[Graph, Calibration]],
) -> None:
    graph, data = network()
    step = PruneChannels(0.3, multiple=4, ends=True, smallest=0)
    pruned = prune(step, graph, calibration=data).graph
    shares = removed(graph, pruned).shares
    plan = Plan({name: {"channels": channels_of(lost)} for name, lost in shares.items()})
    again = prune(PruneChannels(), graph, calibration=data, plan=plan).graph
    assert shapes(again) != shapes(graph)
    assert again.constants().keys() == pruned.constants().keys()
    for name, values in pruned.constants().items():
        np.testing.assert_array_equal(again.constants()[name], values)


def test_a_plan_is_followed_to_the_entry() -> None:
    plan = Plan({LAYERS[1]: {"channels": 0.35}})
    found = prune(PruneChannels(0.5, multiple=4, ends=True, smallest=0), plan=plan)
    assert shapes(found.graph)["w1"] == (12, 13)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"nowhere": {"channels": 0.5}}, '"nowhere" is not a linear layer'),
        ({LAYERS[1]: {"channels": 1.2}}, "is 1.2, not a number from 0 to below 1"),
        ({LAYERS[1]: {"channels": "half"}}, "is 'half', not a number"),
        (
            {LAYERS[1]: {"channels": "0.5|0"}},
            r"not one share for each of its dimensions \(20\)",
        ),
        ({LAYERS[1]: {"channels": 0.01}}, "which is less than one of its 20 inputs"),
        ({LAYERS[0]: {"channels": 0.5}}, f'no inputs of "{LAYERS[0]}" can be removed: callers'),
    ],
)
def test_a_plan_that_cannot_be_is_refused(levels: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        prune(EVERY, plan=Plan(levels))


def test_all_that_is_wrong_with_a_plan_is_said_at_once() -> None:
    levels = {"nowhere": {"channels": 0.5}, LAYERS[0]: {"channels": 0.5}}
    with pytest.raises(UnusableInput) as refused:
        prune(EVERY, plan=Plan({**levels, LAYERS[1]: {"channels": 1.2}}))
    for part in ('"nowhere" is not', f'no inputs of "{LAYERS[0]}"', f'"{LAYERS[1]}" is 1.2'):
        assert part in str(refused.value)


def test_readers_of_one_stream_cannot_be_asked_for_different_shares() -> None:
    graph, data = residual()
    up, head = reading(graph, "up1"), reading(graph, "head")
    plan = Plan({up: {"channels": 0.5}, head: {"channels": 0.25}})
    with pytest.raises(UnusableInput, match=f'16 channels are to lose .* by "{head}"'):
        prune(EVERY, graph, calibration=data, plan=plan)


def test_a_plan_takes_heads_or_is_refused_where_nothing_can_go() -> None:
    *_, last = [node.name for node in attention().nodes if node.op == "MatMul"]
    plan = Plan({last: {"channels": 0.5}})
    found = prune(EVERY, attention(), calibration=calibration(), plan=plan)
    assert shapes(found.graph)["wo"] == (6, 12)


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
        ({"smallest": -1}, "smallest is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        PruneChannels(**options)


def test_an_unknown_layer_to_skip_is_refused() -> None:
    with pytest.raises(UnknownName, match="elsewhere"):
        prune(PruneChannels(skip=("elsewhere",)))


def test_a_small_share_of_a_dimension_never_takes_more_than_there_is() -> None:
    text = (
        "g (float[1,8] x) => (float[1,4] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    )
    graph = small_graph(text, w=normal(8, 39), v=normal(39, 4))
    step = PruneChannels(0.03, "magnitude", ends=True, smallest=0)
    outcome = step(graph, context())
    assert shapes(outcome.graph)["w"] == (8, 39)
    assert not any("removed" in note.reason for note in outcome.notes)


@pytest.mark.parametrize("how", ["global", "spdy", "entropic", "tolerance"])
def test_where_nothing_may_go_nothing_is_asked(how: str) -> None:
    text = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    graph = small_graph(text, w=normal(8, 4))
    data = Calibration.from_arrays({"x": normal(16, 8)}, graph.inputs)
    found = PruneChannels(allocate=how)(graph, context(data)).graph
    assert shapes(found)["w"] == (8, 4)
