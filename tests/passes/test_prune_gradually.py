"""Pruning in rounds, with training in between and tiles that come back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import DEVICE, correlated, three_layers
from tests.passes.perceptrons import as_graph, modes, trained, unlabelled
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Tile
from tilewright.passes import PASSES
from tilewright.passes.heal.checkpoint import Checkpoint
from tilewright.passes.heal.regrow import largest, mean_squares
from tilewright.passes.prune.schedule import cubic
from tilewright.pipeline import Pipeline
from tilewright.plan import Plan
from tilewright.protocol import Context, Feeds, silent

torch = pytest.importorskip("torch")
gradual = pytest.importorskip("tilewright.passes.heal.gradual")
training = pytest.importorskip("tilewright.passes.heal.training")

FIRST, SECOND, LAST = (layer.name for layer in linear_layers(three_layers()))
# Rows of 4 outputs by 1 input: 5 x 12, 2 x 20 and 2 (the second of them ragged) x 8.
TILES = 60 + 40 + 16


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks on several threads wait for each other most of the time."""
    monkeypatch.setattr(oracle, "cores", lambda: 1)
    monkeypatch.setattr(training, "spread_over_cores", lambda work, all_: [*map(work, all_)])


def calibration(samples: int = 36) -> Calibration:
    return Calibration.from_arrays({"x": correlated(samples, 16, 12)}, three_layers().inputs)


def pruning(**options: Any) -> Any:
    usual = {"sparsity": 0.7, "epochs": 3, "rate": 3e-3, "batch": 4, "rounds": 4}
    return gradual.PruneGradually(**{**usual, "ends": True, "smallest": 0, **options})


def prune(step: Any, **known: Any) -> Graph:
    outcome = step(three_layers(), Context(DEVICE, calibration(), **known))
    return outcome.graph  # type: ignore[no-any-return]


def tiles_left(graph: Graph) -> list[np.ndarray]:
    return [mean_squares(la.matrix(), Tile(4)) > 0 for la in linear_layers(graph)]


def count(kept: list[np.ndarray]) -> int:
    return sum(int(tiles.sum()) for tiles in kept)


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gather how many tiles are left after each change of the masks."""
    found: list[int] = []
    change = training.Training.change

    def gathered(self: Any, masks: Mapping[str, np.ndarray]) -> None:
        change(self, masks)
        # MatMul stores (inputs, outputs).
        found.append(count([mean_squares(mask.T, Tile(4)) > 0 for mask in masks.values()]))

    monkeypatch.setattr(training.Training, "change", gathered)
    return found


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_all_layers_together_end_with_as_many_tiles_as_were_asked_for(sparsity: float) -> None:
    left = tiles_left(prune(pruning(sparsity=sparsity)))
    assert count(left) == TILES - round(sparsity * TILES)
    # They compete, so shares differ.
    assert len({kept.mean() for kept in left}) > 1


def test_every_row_of_tiles_keeps_one() -> None:
    for kept in tiles_left(prune(pruning(sparsity=0.99))):
        np.testing.assert_array_equal(kept.sum(axis=1), 1)


def test_rounds_follow_the_cubic_schedule_and_regrowth_changes_no_number(
    changes: list[int],
) -> None:
    prune(pruning(start=0.1))
    wanted = TILES - np.round(cubic(np.arange(1, 5), 0, 4, 0.1, 0.7) * TILES)
    # Before the last round's pruning each is followed by an exchange.
    assert changes == [int(n) for n in np.repeat(wanted, 2)][:-1]


def test_without_regrowth_it_is_gradual_magnitude_pruning() -> None:
    # No row of tiles comes to its last one at this sparsity.
    step = pruning(sparsity=0.5, tile="1x1", regrow=0.0)
    graph = three_layers()
    expected = training.Training(step, graph, graph, calibration(), 0)
    starts, rounds = [0, 4, 8, 12], iter(cubic(np.arange(1, 5), 0, 4, 0.0, 0.5))

    def before(index: int, _: Sequence[Feeds]) -> None:
        if index not in starts:
            return
        weights = {n: w for n, w in expected.weights().items() if n.startswith("w")}
        sizes = np.sort(np.abs(np.concatenate([w.ravel() for w in weights.values()])))
        limit = sizes[round(next(rounds) * len(sizes))]
        expected.change({name: np.abs(w) >= limit for name, w in weights.items()})
        if index == starts[-1]:
            expected.settle()

    reference = expected.run(Checkpoint(step.name, None, "", silent), silent, before)
    found = prune(step).constants()
    for name, values in reference.constants().items():
        np.testing.assert_array_equal(found[name], values)


def test_in_one_round_the_smallest_of_the_dense_networks_tiles_go() -> None:
    dense = [mean_squares(layer.matrix(), Tile(4)) for layer in linear_layers(three_layers())]
    for found, wanted in zip(
        tiles_left(prune(pruning(rounds=1))), largest(dense, 0.7), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_regrowth_ends_with_other_tiles() -> None:
    grown, not_grown = (tiles_left(prune(pruning(regrow=share))) for share in (0.5, 0.0))
    assert any((a != b).any() for a, b in zip(grown, not_grown, strict=True))


def test_weights_that_may_be_other_than_zero_again_start_there_and_nothing_is_remembered() -> (
    None
):
    graph = three_layers()
    student = training.Training(pruning(), graph, graph, calibration(), 0)
    feeds = list(calibration().feeds())
    every, half = np.ones((12, 20), bool), normal(12, 20) > 0
    student.change({"w1": half})
    student._step(feeds, 0.5)
    assert (student.weights()["w1"][~half] == 0).all()
    before = student.weights()["w1"][half]
    student.change({"w1": every})
    np.testing.assert_array_equal(student.weights()["w1"][half], before)
    assert (student.weights()["w1"][~half] == 0).all()
    student._step(feeds, 0.5)
    assert (student.weights()["w1"][~half] != 0).all()
    # Adam goes on for a while where it was going, unless it forgets.
    student.change({"w1": half})
    student.change({"w1": every})
    state = student._optimizer.state[student._relative["w1"]]
    for kind in ("exp_avg", "exp_avg_sq"):
        assert (state[kind].numpy()[~half] == 0).all()
        assert (state[kind].numpy()[half] != 0).all()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("epoch", [2, 3])
def test_interrupted_before_or_after_the_last_round_it_ends_as_if_it_had_not_been(
    epoch: int, tmp_path: Path
) -> None:
    step, said = pruning(rounds=5), list[str]()

    def until(text: str) -> None:
        if f"epoch {epoch} of" in text:
            raise Interrupted

    with pytest.raises(Interrupted):
        prune(step, unfinished=tmp_path, report=until)
    resumed = prune(step, unfinished=tmp_path, report=said.append)
    assert said[0] == f"prune-gradually: going on after epoch {epoch - 1} of 3"
    for name, values in prune(step).constants().items():
        np.testing.assert_array_equal(resumed.constants()[name], values)


def test_what_was_interrupted_under_another_plan_is_not_gone_on_with(tmp_path: Path) -> None:
    def until_second(text: str) -> None:
        if "epoch 2 of" in text:
            raise Interrupted

    other = Plan({FIRST: {"sparsity": 0.75}})
    with pytest.raises(Interrupted):
        prune(pruning(), unfinished=tmp_path, report=until_second, plan=other)
    plan = Plan({LAST: {"sparsity": 0.25}})
    first, _, last = linear_layers(prune(pruning(), unfinished=tmp_path, plan=plan))
    assert first.matrix().all()
    assert (last.matrix() == 0).mean() == 0.25


def test_a_plan_says_how_much_of_which_layer_goes() -> None:
    plan = Plan({FIRST: {"sparsity": 0.5, "tile": "2x3"}, LAST: {"sparsity": 0.25}})
    first, second, last = linear_layers(prune(pruning(), plan=plan))
    assert (mean_squares(first.matrix(), Tile(2, 3)) == 0).mean() == 0.5
    assert second.matrix().all()
    assert (last.matrix() == 0).mean() == 0.25


def test_layers_that_stay_dense_are_noted() -> None:
    context = Context(DEVICE, calibration())
    graph, notes = pruning(ends=False, smallest=200)(three_layers(), context)
    assert [note.node for note in notes] == [FIRST, SECOND, LAST]
    assert "fewer than smallest=200" in notes[1].reason
    for name, values in graph.constants().items():
        np.testing.assert_array_equal(values, three_layers().constants()[name])


def test_weights_in_half_precision_are_noted_and_stay() -> None:
    text = """g (float16[1,8] x) => (float16[1,4] y) { y = MatMul(x, w) }"""
    graph = small_graph(text, w=normal(8, 4).astype(np.float16))
    data = Calibration.from_arrays({"x": normal(4, 8).astype(np.float16)}, graph.inputs)
    _, notes = pruning()(graph, Context(DEVICE, data))
    assert [note.reason for note in notes] == [
        "its weights are not float32, and no others are trained"
    ]


def test_a_pipeline_trains_towards_what_came_before_all_pruning() -> None:
    steps = "prune-weights{sparsity=0.3},prune-gradually{epochs=3,batch=4,rounds=4,smallest=0}"
    run = Pipeline.parse(steps, PASSES).run(three_layers(), Context(DEVICE, calibration()))
    second = list(linear_layers(run.graph))[1]
    assert (mean_squares(second.matrix(), Tile(4)) == 0).sum() == round(0.6 * 40)


def test_too_many_rounds_for_the_data_are_refused() -> None:
    # 32 of 36 samples in batches of 4, 3 epochs, two thirds of the steps.
    with pytest.raises(UnusableInput, match=r"17 rounds do not fit into 16 steps.*rounds=16"):
        prune(pruning(rounds=17))


def test_without_data_it_is_refused() -> None:
    with pytest.raises(UnusableInput, match=r"prune-gradually: .*Give --calibration"):
        pruning()(three_layers(), Context(DEVICE))


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 1.0},
        {"start": 0.8},
        {"regrow": 1.0},
        {"rounds": 0},
        {"tile": "4"},
        {"epochs": 0},
        {"rate": 0.0},
        {"smallest": -1},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnusableInput, match=f"prune-gradually: {next(iter(options))} is"):
        pruning(**options)


def test_at_90_percent_regrowth_ends_nearer_to_the_dense_network_for_most_seeds() -> None:
    unseen = modes(1024, 99)[0]
    nearer = []
    for seed in range(5):
        dense = as_graph(trained((32, 32), modes(2000, seed + 1), seed, steps=400), rows=64)
        context = Context(DEVICE, unlabelled(dense, modes(576, seed + 50)[0]))
        losses = []
        for regrow in (0.5, 0.0):
            step = pruning(
                sparsity=0.9,
                tile="1x1",
                regrow=regrow,
                epochs=150,
                rate=0.01,
                rounds=6,
                batch=8,
            )
            pruned = step(dense, context).graph.sorted()
            student = training.Training(step, pruned, dense, context.calibration, 0)
            feeds = list(unlabelled(dense, unseen).feeds())
            losses.append(float(student.losses(feeds).mean().detach()))
        nearer.append(losses[0] <= losses[1])
    assert sum(nearer) >= 4
