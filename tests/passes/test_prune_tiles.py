import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graphs import CHANNELS, DEVICE, agree, context, correlated, three_layers
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Pattern, Tile
from tilewright.passes.prune import descent, obs
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.plan import Level, Plan, plan_of
from tilewright.protocol import Context
from tilewright.row_groups import gathered

FIRST, SECOND, LAST = (layer.name for layer in linear_layers(three_layers()))
EVERY = PruneTiles(sparsity=0.5, ends=True, smallest=0)
SEEN = 1  # the seed of the calibration data


@pytest.fixture
def least_squares_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are fitted to their own outputs, as allocators measure them, and stay so."""
    monkeypatch.setattr(descent, "_ROUNDS", 0)


def calibration(samples: int = 40) -> Calibration:
    return Calibration.from_arrays({"x": correlated(samples, 16, 12)}, three_layers().inputs)


def prune(step: PruneTiles, graph: Graph | None = None, **known: Any) -> Graph:
    return step(graph or three_layers(), context(**known)).graph


def level(sparsity: float | str, tile: str) -> Level:
    return {"sparsity": sparsity, "tile": tile}


def damage(pruned: Graph, samples: int = 10, seed: int = 2) -> float:
    """Return the relative error of y, on inputs that no pass has seen unless the seed says."""
    total, size = 0.0, 0.0
    dense = oracle.session(three_layers())
    found = oracle.session(pruned)
    for x in correlated(samples, 16, 12, seed=seed):
        expected = oracle.outputs_of(dense, {"x": x[None]})["y"]
        total += float(
            np.square(oracle.outputs_of(found, {"x": x[None]})["y"] - expected).sum()
        )
        size += float(np.square(expected - expected.mean()).sum())
    return total / size


def test_every_layer_loses_half_of_its_tiles() -> None:
    pruned = prune(EVERY, calibration=calibration())
    assert plan_of(pruned, DEVICE).levels == {
        name: {"sparsity": 0.5, "tile": "4x1"} for name in (FIRST, SECOND, LAST)
    }
    onnx.checker.check_model(pruned.to_onnx(), full_check=True)


@pytest.mark.usefixtures("least_squares_alone")
def test_a_global_budget_is_spent_where_the_answers_suffer_least() -> None:
    data = calibration()
    everywhere = prune(PruneTiles(0.5, ends=True, smallest=0), calibration=data)
    chosen = prune(PruneTiles(0.5, allocate="global", ends=True, smallest=0), calibration=data)
    assert damage(chosen) < 0.9 * damage(everywhere)
    # Every weight is multiplied at 16 positions; a tile more than the budget may go.
    zeros = [
        sum((layer.matrix() == 0).sum() for layer in linear_layers(g))
        for g in (everywhere, chosen)
    ]
    assert abs(zeros[1] - zeros[0]) <= 20


@pytest.mark.parametrize("how", ["global", "dp", "spdy", "erk"])
def test_an_allocator_saves_its_share_of_the_multiplications(how: str) -> None:
    step = PruneTiles(0.5, allocate=how, ends=True, smallest=0)
    pruned = prune(step, calibration=calibration())
    zeros = sum((layer.matrix() == 0).sum() for layer in linear_layers(pruned))
    whole = sum(layer.matrix().size for layer in linear_layers(pruned))
    # Each of three layers rounds to whole columns of tiles, of 48, 160 and 160 weights.
    assert abs(zeros - 0.5 * whole) <= 80


@pytest.mark.parametrize(
    "how", [{"allocate": "prioritized", "sparsity": 0.9}, {"allocate": "sensitivity"}]
)
def test_answers_agree_to_the_floor_whatever_is_asked_for(how: dict[str, Any]) -> None:
    step = PruneTiles(**how, floor=0.95, ends=True, smallest=0)
    pruned = prune(step, calibration=calibration())
    assert any((layer.matrix() == 0).any() for layer in linear_layers(pruned))
    # Seen on other samples than those that held the floor, and refitted on more.
    assert damage(pruned) < 2 * (1 - 0.95)


def test_a_floor_of_one_leaves_the_network_as_it_is() -> None:
    step = PruneTiles(0.5, allocate="prioritized", floor=1.0, ends=True, smallest=0)
    agree(three_layers(), prune(step, calibration=calibration()), {"x": correlated(1, 16, 12)})


@pytest.mark.parametrize("options", [{"allocate": "best"}, {"floor": 1.5}])
def test_an_allocation_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnusableInput, match=f"prune-tiles: {next(iter(options))} is"):
        PruneTiles(**options)


def test_a_plans_tile_that_the_target_does_not_skip_is_noted() -> None:
    plan = Plan({SECOND: level(0.5, "5x7"), LAST: level(0.5, "4x1")})
    notes = EVERY(three_layers(), context(calibration=calibration(), plan=plan)).notes
    assert [note.node for note in notes] == [SECOND]
    assert "5x7 is none that device skips (4x1, 8x1)" in notes[0].reason


def test_a_global_budget_needs_data() -> None:
    with pytest.raises(UnusableInput, match=r"allocate=global .* Give --calibration"):
        prune(PruneTiles(allocate="global"))


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_every_row_of_tiles_keeps_a_tile(criterion: str) -> None:
    step = PruneTiles(0.999, criterion, ends=True, smallest=0)
    pruned = prune(step, calibration=calibration())
    for layer in linear_layers(pruned):
        matrix = layer.matrix()
        matrix = matrix[gathered(matrix != 0, 4)]
        for first in range(0, len(matrix), 4):
            assert np.flatnonzero(matrix[first : first + 4].any(axis=0)).size == 1


def test_obs_hurts_far_less_than_magnitude() -> None:
    data = calibration()
    by_magnitude = damage(prune(PruneTiles(0.5, "magnitude", ends=True, smallest=0)))
    assert damage(prune(EVERY, calibration=data)) < by_magnitude / 4


def test_nothing_changes_at_sparsity_zero() -> None:
    dense = three_layers()
    pruned = prune(PruneTiles(0.0, ends=True, smallest=0), calibration=calibration())
    agree(dense, pruned, {"x": correlated(1, 16, 12)})


@pytest.mark.usefixtures("least_squares_alone")
def test_a_layer_and_its_bias_are_the_joint_least_squares_fit() -> None:
    data = calibration(8)
    only = PruneTiles(0.5, ends=True, smallest=0, damp=1e-9, skip=(SECOND, LAST))
    pruned, dense = prune(only, calibration=data), three_layers().constants()
    x = np.concatenate([f["x"][0] for f in data.feeds()]).T.astype(np.float64)
    found = pruned.constants()
    change = (found["w1"].T - dense["w1"].T) @ x + (found["b1"] - dense["b1"])[:, None]
    kept = found["w1"].T != 0
    assert kept.mean() == 0.5
    size = np.abs(x).max() * np.abs(dense["w1"].T @ x).max() * x.shape[1]
    # Gradients for the kept weights and for the bias vanish up to float32's rounding.
    np.testing.assert_allclose((change @ x.T)[kept], 0, atol=1e-6 * size)
    np.testing.assert_allclose(change.sum(axis=1), 0, atol=1e-6 * size)


def test_a_later_layer_is_fitted_to_what_the_pruned_network_gives_it() -> None:
    data = calibration()
    # At sparsity 0 a layer is refitted only.
    plan = Plan({FIRST: level(0.5, "4x1"), LAST: level(0.0, "1x1")})
    mended = prune(PruneTiles(damp=1e-9), calibration=data, plan=plan)
    mended.gs.outputs.append(mended.gs.tensors()["s"])
    dense, now = oracle.session(three_layers()), oracle.session(mended)
    wanted = np.concatenate([oracle.outputs_of(dense, feed)["y"][0] for feed in data.feeds()])
    given = np.concatenate([oracle.outputs_of(now, feed)["s"][0] for feed in data.feeds()])
    best = np.linalg.lstsq(given.astype(np.float64), wanted.astype(np.float64))[0]
    # Sums of 640 products in float32, and a well-conditioned 8 x 8 system.
    np.testing.assert_allclose(mended.constants()["w3"], best, rtol=1e-3, atol=1e-3)
    assert np.abs(best - three_layers().constants()["w3"]).max() > 0.1


def test_the_same_inputs_give_the_same_bytes() -> None:
    one, two = (prune(EVERY, calibration=calibration()).to_onnx() for _ in "ab")
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(
        deterministic=True
    )


def test_without_calibration_a_warning_says_so() -> None:
    said: list[str] = []
    outcome = EVERY(three_layers(), Context(CHANNELS, report=said.append))
    assert "no calibration data" in said[0]
    assert [note.node for note in outcome.notes] == [FIRST, SECOND, LAST]
    matrix = next(linear_layers(three_layers())).matrix()
    kept = obs.spread(obs.smallest_tiles(matrix, Tile(4), 0.5), Tile(4), matrix.shape)
    expected = np.where(kept, matrix, 0)
    assert (next(linear_layers(outcome.graph)).matrix() == expected).all()


def test_quantized_layers_say_so_wherever_they_stand() -> None:
    text = """g (float[1,8] x) => (float[1,8] y) {
        w = DequantizeLinear(q, scale) a = MatMul(x, w) y = MatMul(a, v)
    }"""
    q = np.ones((8, 8), np.int8)
    graph = small_graph(text, q=q, scale=np.array(0.1, np.float32), v=normal(8, 8))
    _, notes = PruneTiles(sparsity=0.5)(graph, context())
    assert [note.reason for note in notes] == [
        "its weights are quantized; prune before quantizing",
        "the last layer of the network; ends=true prunes it too",
    ]


def test_a_pattern_that_the_target_executes_is_no_reason_for_a_note() -> None:
    notes = {}
    for patterns in ((), (Pattern.parse("2:4"),)):
        device, said = dataclasses.replace(DEVICE, patterns=patterns), list[str]()
        step = PruneTiles(tile="2:4", ends=True, smallest=0, criterion="magnitude")
        done = step(three_layers(), Context(device, report=said.append))
        notes[patterns] = [note for note in done.notes if "expect no speed" in note.reason]
        assert any("expect no speed" in line for line in said) == (not patterns)
    assert [len(each) for each in notes.values()] == [3, 0]


def test_layers_whose_zeros_no_kernel_skips_are_reported_before_they_are_pruned() -> None:
    half = np.float16
    graph = small_graph(
        """g (float16[1,8] x) => (float16[1,8] y) {
            a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w)
        }""",
        **{name: normal(8, 8).astype(half) for name in "uvw"},
    )
    said: list[str] = []
    known = dataclasses.replace(context(), report=said.append)
    _, notes = PruneTiles(sparsity=0.5, smallest=0)(graph, known)
    assert said[0].startswith("prune-tiles: 1 of 1 layers have weights in float16, but ")
    assert "expect no speed" in said[0]
    assert notes[2].reason == "weights in float16 are none whose zeros are skipped"
    said.clear()
    PruneTiles(sparsity=0.5)(three_layers(), known)
    assert not any("float" in each for each in said)


def test_ends_and_small_layers_stay_dense_and_say_why() -> None:
    outcome = PruneTiles(smallest=161)(three_layers(), context(calibration()))
    assert dict(outcome.notes) == {
        FIRST: "the first layer of the network; ends=true prunes it too",
        SECOND: "160 weights are fewer than smallest=161",
        LAST: "the last layer of the network; ends=true prunes it too",
    }
    assert str(outcome.graph) == str(three_layers())


def test_grouped_and_transposed_convolutions_stay_dense_and_say_why() -> None:
    g = small_graph(
        """g (float[1,8,6,6] x) => (float[1,8,N,M] y) {
            a = Conv <group = 8> (x, w)  b = Conv <group = 2> (a, v)  y = ConvTranspose(b, u)
        }""",
        w=normal(8, 1, 3, 3),
        v=normal(8, 4, 3, 3),
        u=normal(8, 8, 2, 2),
    )
    names = {node.outputs[0].name: node.name for node in g.nodes}
    notes = dict(PruneTiles(smallest=0, ends=True)(g, context()).notes)
    assert notes == {
        names["a"]: "a depthwise convolution has few weights for what it does",
        names["b"]: "a grouped convolution has few weights for what it does",
        names["y"]: "a ConvTranspose is not pruned",
    }
    pruned = prune(PruneTiles(0.5, smallest=0, ends=True, depthwise=True), g)
    # 9 taps lose round(4.5) = 4 tiles, 36 columns lose 18.
    assert np.mean(pruned.constants()["w"] == 0) == pytest.approx(4 / 9)
    assert np.mean(pruned.constants()["v"] == 0) == 0.5


def test_convolutions_are_pruned_on_their_patches() -> None:
    text = """g (float[1,4,8,8] x) => (float[1,6,8,8] y) {
        a = Conv <pads = [1,1,1,1]> (x, w, b)  y = Conv(a, v)
    }"""
    g = small_graph(text, w=normal(8, 4, 3, 3), b=normal(8), v=normal(6, 8, 1, 1))
    noise = correlated(20, 64, 4).transpose(0, 2, 1).reshape(20, 4, 8, 8)
    # Neighbours in an image are alike.
    shifts = [(i, j) for i in range(3) for j in range(3)]
    samples = np.sum([np.roll(noise, shift, axis=(2, 3)) for shift in shifts], axis=0)
    data = Calibration.from_arrays({"x": samples}, g.inputs)
    refitted = prune(EVERY, g, calibration=data)
    cut = prune(PruneTiles(0.5, "magnitude", ends=True, smallest=0), g)
    expected, found, plain = (
        oracle.run(graph, {"x": samples[:1]})["y"] for graph in (g, refitted, cut)
    )
    assert np.square(found - expected).sum() < np.square(plain - expected).sum() / 2


def test_siblings_share_their_input_and_are_all_pruned() -> None:
    text = """g (float[1,16,12] x) => (float[1,16,8] y) {
        q = MatMul(x, wq)  k = MatMul(x, wk)  y = Sub(q, k)
    }"""
    g = small_graph(text, wq=normal(12, 8), wk=normal(12, 8, seed=1))
    data = Calibration.from_arrays({"x": correlated(10, 16, 12)}, g.inputs)
    pruned = prune(EVERY, g, calibration=data)
    assert [float(np.mean(layer.matrix() == 0)) for layer in linear_layers(pruned)] == [
        0.5,
        0.5,
    ]


def test_a_plan_is_replayed_bit_for_bit() -> None:
    data = calibration()
    pruned = prune(PruneTiles(0.3, ends=True, smallest=0, tile="4x2"), calibration=data)
    levels = {n: level(1 / 3, "4x2") for n in (FIRST, LAST)} | {SECOND: level(0.3, "4x2")}
    replayed = prune(PruneTiles(), calibration=data, plan=Plan(levels))
    assert replayed.to_onnx() == pruned.to_onnx()


def test_layers_that_a_plan_does_not_name_stay_dense() -> None:
    plan = Plan({SECOND: {"sparsity": 0.5, "tile": "8x1"}, "other": {"bits": 8}})
    pruned = prune(PruneTiles(), plan=plan).constants()
    dense = three_layers().constants()
    assert (pruned["w1"] == dense["w1"]).all()
    assert np.mean(pruned["w2"] == 0) == 0.5


def test_everything_wrong_with_a_plan_is_said_at_once() -> None:
    levels: dict[str, dict[str, float | int | str]] = {
        "nowhere": {"sparsity": 0.5},
        FIRST: {"sparsity": 1.0},
        SECOND: {"sparsity": 0.5, "tile": "0x4"},
        LAST: {"sparsity": "half"},
    }
    with pytest.raises(UnusableInput) as caught:
        prune(PruneTiles(), plan=Plan(levels))
    for part in (
        '"nowhere" is not a linear layer of this model',
        f'sparsity of "{FIRST}" is 1.0, not a number from 0 to below 1',
        f'tile of "{SECOND}" is "0x4", not like "4x1" or "2:4"',
        f"sparsity of \"{LAST}\" is 'half'",
    ):
        assert part in str(caught.value)


def test_rows_that_suffer_less_lose_more_of_as_many_tiles() -> None:
    data = calibration()
    # The answers are the last layer's, and judged where they were fitted.
    even, chosen = (
        prune(
            PruneTiles(0.5, rows=rows, ends=True, smallest=0, damp=1e-9, skip=(FIRST, SECOND)),
            calibration=data,
        )
        for rows in ("uniform", "global")
    )
    assert plan_of(chosen, DEVICE) == plan_of(even, DEVICE)
    counts = [
        {int((row != 0).sum()) for row in layer.matrix()} for layer in linear_layers(chosen)
    ]
    assert max(map(len, counts)) > 1
    assert damage(chosen, 40, seed=SEEN) < damage(even, 40, seed=SEEN)


@pytest.mark.parametrize("known", [{}, {"calibration": calibration()}])
def test_rows_cannot_be_told_apart_without_data_or_by_magnitude(known: dict[str, Any]) -> None:
    with pytest.raises(UnusableInput, match=r"rows=global .* Give --calibration"):
        prune(PruneTiles(criterion="magnitude" if known else "obs", rows="global"), **known)


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_two_of_four_inputs_stay(criterion: str) -> None:
    step = PruneTiles(criterion=criterion, tile="2:4", ends=True, smallest=0)
    pruned = prune(step, calibration=calibration())
    for layer in linear_layers(pruned):
        kept = layer.matrix().reshape(layer.outputs, -1, 4) != 0
        assert (kept.sum(axis=2) == 2).all()


def test_two_of_four_channels_of_a_convolution_stay_at_each_tap() -> None:
    text = "g (float[1,8,5,5] x) => (float[1,6,3,3] y) { y = Conv(x, w) }"
    g = small_graph(text, w=normal(6, 8, 3, 3))
    data = Calibration.from_arrays({"x": normal(30, 8, 5, 5)}, g.inputs)
    pruned = prune(PruneTiles(tile="2:4", ends=True, smallest=0), g, calibration=data)
    kept = pruned.constants()["w"].reshape(6, 2, 4, 3, 3) != 0
    assert (kept.sum(axis=2) == 2).all()


def test_a_pattern_is_read_back_and_replayed_bit_for_bit() -> None:
    data = calibration()
    pruned = prune(PruneTiles(tile="2:4", ends=True, smallest=0), calibration=data)
    # The last layer has 12 groups: too few to tell a pattern from chance.
    plan = plan_of(pruned, DEVICE)
    assert [plan.levels[name] for name in (FIRST, SECOND)] == [
        {"sparsity": 0.5, "tile": "2:4"} for _ in "ab"
    ]
    assert plan.levels[LAST]["tile"] == "1x1"
    # Without its sparsity a pattern says as much.
    levels: dict[str, Level] = {FIRST: plan.levels[FIRST], SECOND: {"tile": "2:4"}}
    again = prune(PruneTiles(), calibration=data, plan=Plan({**levels, LAST: {"tile": "2:4"}}))
    assert again.to_onnx() == pruned.to_onnx()


def test_a_plans_sparsity_must_be_that_of_its_pattern() -> None:
    with pytest.raises(UnusableInput, match=r"is 0.6, but 2:4 makes it 0.5"):
        prune(PruneTiles(), plan=Plan({FIRST: level(0.6, "2:4")}))


def test_a_skipped_layer_must_exist() -> None:
    with pytest.raises(UnknownName, match='no layer "nowhere"'):
        prune(PruneTiles(skip=("nowhere",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0, but must be a share of at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"criterion": "luck"}, "criterion is luck, but must be one of obs, magnitude"),
        ({"tile": "4"}, "tile is 4, but must be outputs x inputs"),
        ({"tile": "0x1"}, "tile is 0x1"),
        ({"tile": "4:2"}, 'tile is 4:2, but must be .* or kept:of, such as "2:4"'),
        ({"rows": "some"}, "rows is some, but must be one of uniform, global"),
        (
            {"tile": "2:4", "rows": "global"},
            'rows is global, but must be "uniform" with tile=2:4, which leaves nothing',
        ),
        ({"tile": "2:4", "allocate": "global"}, "allocate is global, but must be"),
        ({"damp": 0.0}, "damp is 0.0, but must be a positive number"),
        ({"smallest": -1}, "smallest is -1, but must be a whole number from 0 on"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        PruneTiles(**options)


@pytest.mark.parametrize("how", ["global", "spdy", "entropic", "prioritized"])
def test_where_nothing_may_go_nothing_is_asked(how: str) -> None:
    graph = small_graph(
        "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(8, 4)
    )
    data = Calibration.from_arrays({"x": normal(16, 8)}, graph.inputs)
    found = PruneTiles(allocate=how)(graph, context(data)).graph
    np.testing.assert_array_equal(found.constants()["w"], graph.constants()["w"])


def test_a_plan_overrules_an_allocator_that_lacks_data() -> None:
    plan = Plan({SECOND: level(0.5, "4x1")})
    pruned = PruneTiles(allocate="global")(three_layers(), context(plan=plan)).graph
    assert list(plan_of(pruned, DEVICE).levels) == [SECOND]


def test_rows_that_share_zeros_are_no_tile_where_neighbours_are_stored_together() -> None:
    weights = normal(12, 16)
    weights[:6, ::2] = 0
    weights[6:, 1::2] = 0
    text = "g (float[1,16,12] x) => (float[1,16,16] y) { y = MatMul(x, w) }"
    graph = small_graph(text, w=weights)
    assert {str(at["tile"]) for at in plan_of(graph, DEVICE).levels.values()} == {"4x1"}
    assert "4x1" not in {str(at["tile"]) for at in plan_of(graph, CHANNELS).levels.values()}
