"""Healing: what was pruned comes nearer to the dense network, and zeros stay zero."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import DEVICE, correlated, three_layers
from tests.passes.perceptrons import (
    Perceptron,
    accuracy,
    as_graph,
    modes,
    trained,
    unlabelled,
)
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layout import Tile
from tilewright.passes import PASSES
from tilewright.passes.prune import obs
from tilewright.passes.prune.magnitude import PruneWeights
from tilewright.pipeline import Pipeline
from tilewright.protocol import Context
from tilewright.states import internal_states, supports, vectors

torch = pytest.importorskip("torch")
align = pytest.importorskip("tilewright.passes.heal.align")
losses = pytest.importorskip("tilewright.passes.heal.losses")
training = pytest.importorskip("tilewright.passes.heal.training")

FAST = align.Heal(epochs=4, rate=3e-3, batch=8)


def calibration(samples: int = 48, seed: int = 1) -> Calibration:
    data = correlated(samples, 16, 12, seed)
    return Calibration.from_arrays({"x": data}, three_layers().inputs)


def pruned(sparsity: float = 0.7) -> Graph:
    step = PruneWeights(sparsity=sparsity)
    return step(three_layers(), Context(DEVICE)).graph


def heal(step: Any = FAST, graph: Graph | None = None, **known: Any) -> Graph:
    context = Context(
        DEVICE, **{"calibration": calibration(), "dense": three_layers(), **known}
    )
    outcome = step(graph or pruned(), context)
    return outcome.graph  # type: ignore[no-any-return]


def angle(graph: Graph) -> float:
    """Return the mean over positions of 1 - cos to the dense answers, on unseen inputs."""
    away = []
    for feeds in calibration(12, seed=9).feeds():
        a, b = (oracle.run(g, feeds)["y"][0] for g in (graph, three_layers()))
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        away.append(1 - (a * b).sum(-1) / lengths)
    return float(np.mean(away))


def test_healed_answers_are_nearer_on_inputs_that_nothing_was_fitted_to() -> None:
    assert angle(heal(align.Heal(epochs=20, rate=0.02, batch=8))) < 0.5 * angle(pruned())


def test_how_large_an_output_and_its_weights_are_changes_nothing_of_how_it_learns() -> None:
    sizes = np.array([1, 64, 1, 0.125], np.float32)  # powers of two: nothing is rounded
    kept = normal(8, 4, seed=3) > 0

    def healed(scales: np.ndarray) -> np.ndarray:
        text = """g (float[1,8] x) => (float[1,4] y) {
            wide = MatMul(x, w)  scaled = Div(wide, scales)  y = Tanh(scaled)
        }"""
        dense = small_graph(text, w=normal(8, 4) * scales, scales=scales)
        sparse = small_graph(text, w=normal(8, 4) * scales * kept, scales=scales)
        data = Calibration.from_arrays({"x": normal(32, 8)}, dense.inputs)
        return np.asarray(heal(FAST, sparse, calibration=data, dense=dense).constants()["w"])

    np.testing.assert_array_equal(healed(sizes), healed(np.ones(4, np.float32)) * sizes)


def test_weights_that_are_zero_stay_zero_and_no_other_becomes_it() -> None:
    before, after = supports(pruned()), supports(heal())
    assert before.keys() == after.keys()
    for name, support in before.items():
        np.testing.assert_array_equal(after[name], support)


def test_the_same_data_give_the_same_weights() -> None:
    assert constants_equal(heal(), heal())


def test_another_seed_takes_samples_in_another_order() -> None:
    assert not constants_equal(heal(), heal(seed=1))


def constants_equal(one: Graph, other: Graph) -> bool:
    a, b = one.constants(), other.constants()
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_network_that_is_the_dense_one_stays_as_it_is() -> None:
    graph = three_layers()
    outcome = FAST(graph, Context(DEVICE, calibration(), dense=graph))
    assert constants_equal(outcome.graph, graph)
    assert [note.reason for note in outcome.notes] == ["nothing was pruned before it"]


def test_the_loss_of_the_dense_network_is_zero_and_its_gradient_too() -> None:
    student = training.Training(FAST, three_layers(), three_layers(), calibration(), 0)
    loss = student.losses(list(calibration(2).feeds())).sum()
    weights = list(student._student.weights.values())
    # 1 - cos of vectors in float32.
    assert abs(float(loss.detach())) < 1e-6
    for gradient in torch.autograd.grad(loss, weights):
        assert float(gradient.abs().max()) < 1e-6


def test_the_angle_minds_no_length_but_squares_do() -> None:
    a, b = torch.from_numpy(normal(2, 5, 7)), torch.from_numpy(normal(2, 5, 7, seed=1))
    torch.testing.assert_close(losses.angles(3 * a, b, -1), losses.angles(a, b, -1))
    assert float(losses.squares(3 * a, a, -1).mean()) == pytest.approx(4, rel=1e-5)
    # Of each sample's own mean: a faint one counts as much as a bright one.
    scaled = torch.tensor([1.0, 100.0]).reshape(2, 1, 1)
    torch.testing.assert_close(
        losses.squares(scaled * a, scaled * b, -1), losses.squares(a, b, -1)
    )


def test_divergence_brings_scores_of_classes_nearer_at_each_position() -> None:
    healed = heal(align.Heal(epochs=20, rate=0.02, batch=8, loss="divergence"))
    unseen = Answers(three_layers(), calibration(12, seed=9))
    assert unseen.divergence(healed) < 0.5 * unseen.divergence(pruned())


def test_the_divergence_is_added_to_the_squares_of_the_states() -> None:
    samples = list(calibration(2, seed=9).feeds())

    def loss_of(loss: str) -> np.ndarray:
        step = align.Heal(loss=loss)
        student = training.Training(step, pruned(), three_layers(), calibration(), 0)
        return np.asarray(student.losses(samples).detach())

    one_by_one = [Calibration.from_feeds([each], three_layers().inputs) for each in samples]
    added = [Answers(three_layers(), each).divergence(pruned()) for each in one_by_one]
    # Sums of float32 in another order.
    np.testing.assert_allclose(loss_of("divergence") - loss_of("squares"), added, rtol=1e-4)


def test_divergence_without_scores_of_classes_is_refused() -> None:
    text = "g (float[1,8] x) => (float[1,4] y) { z = MatMul(x, w)  y = Tanh(z) }"
    w = normal(8, 4)
    dense, sparse = small_graph(text, w=w), small_graph(text, w=np.where(w > 0, w, 0))
    data = Calibration.from_arrays({"x": normal(32, 8)}, dense.inputs)
    with pytest.raises(UnusableInput, match="no output of the model holds such"):
        heal(align.Heal(loss="divergence"), sparse, calibration=data, dense=dense)


def test_padding_does_not_count() -> None:
    text = """g (float[1,6,8] x, int64[1,6] attention_mask) => (float[1,6,8] y) {
        h = MatMul(x, w)  r = Relu(h)  m = MatMul(r, v)  s = Add(x, m)
        i = Cast<to=1>(attention_mask)  j = Unsqueeze(i, last)  y = Mul(s, j)
    }"""
    weights: dict[str, Any] = {"w": normal(8, 16), "v": normal(16, 8), "last": np.array([2])}
    dense = small_graph(text, **weights)
    step = PruneWeights(sparsity=0.6)
    sparse = step(dense, Context(DEVICE)).graph
    mask = np.tile(np.array([1, 1, 1, 0, 0, 0]), (24, 1))
    x = normal(24, 6, 8)
    found = []
    for noise in (0.0, 100.0):
        arrays = {"x": x + noise * (1 - mask[..., None]).astype(np.float32)}
        arrays["attention_mask"] = mask
        data = Calibration.from_arrays(arrays, dense.inputs)
        found.append(FAST(sparse, Context(DEVICE, data, dense=dense)).graph)
    for name, values in found[0].constants().items():
        # Sums over more numbers, of which the others are zero, may be added in another order.
        np.testing.assert_allclose(found[1].constants()[name], values, rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


def test_interrupted_it_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    said: list[str] = []

    def until_third_epoch(text: str) -> None:
        if "epoch 3 of" in text:
            raise Interrupted

    with pytest.raises(Interrupted):
        heal(unfinished=tmp_path, report=until_third_epoch)
    assert len(list(tmp_path.iterdir())) == 1
    resumed = heal(unfinished=tmp_path, report=said.append)
    assert said[0] == "heal: going on after epoch 2 of 4"
    assert constants_equal(resumed, heal())
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_no_one_came_back_for_are_removed(tmp_path: Path) -> None:
    long_ago, lately = tmp_path / "a.pt", tmp_path / "b.pt"
    for file, days in ((long_ago, 31), (lately, 29)):
        file.touch()
        then = time.time() - days * 24 * 3600
        os.utime(file, (then, then))
    heal(unfinished=tmp_path)
    assert list(tmp_path.iterdir()) == [lately]


def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path) -> None:
    def after_first(text: str) -> None:
        if "epoch 2 of" in text:
            raise Interrupted

    with pytest.raises(Interrupted):
        heal(unfinished=tmp_path, report=after_first)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert constants_equal(heal(unfinished=tmp_path), heal())


def test_without_room_for_a_checkpoint_it_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    assert constants_equal(heal(unfinished=occupied, report=said.append), heal())
    assert sum("it will begin anew" in text for text in said) == 1


def test_residual_sums_and_outputs_are_aligned_or_else_what_layers_read() -> None:
    text = """g (float[1,4,8] x) => (float[1,4,3] y) {
        a = MatMul(x, w)  b = Relu(a)  c = Add(b, x)  d = Add(c, one)  y = MatMul(d, v)
    }"""
    weights: dict[str, Any] = {"w": normal(8, 8), "v": normal(8, 3), "one": np.float32(1)}
    residual = small_graph(text, **weights)
    assert internal_states(residual, residual) == ["c", "y"]
    chain = three_layers()
    assert internal_states(chain, chain) == ["x", "r", "s", "y"]


def test_biases_are_trained_and_numbers_that_are_none_are_not() -> None:
    assert vectors(three_layers()) == ["b1", "b2"]


def test_the_pipeline_says_what_the_dense_network_was() -> None:
    steps = "remove-identities,prune-weights{sparsity=0.7},heal{epochs=2}"
    run = Pipeline.parse(steps, PASSES).run(three_layers(), Context(DEVICE, calibration()))
    assert angle(run.graph) < angle(pruned())


def test_without_data_it_is_refused() -> None:
    with pytest.raises(UnusableInput, match="Give --calibration"):
        FAST(pruned(), Context(DEVICE, dense=three_layers()))


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": 2.0}, {"loss": "kl"}]
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnusableInput, match=f"heal: {next(iter(options))} is"):
        align.Heal(**options)


def test_an_operator_without_gradient_is_named() -> None:
    text = "g (float[1,8] x) => (float[1,4] y) { a = Hardmax(x) y = MatMul(a, w) }"
    dense = small_graph(text, w=normal(8, 4))
    sparse = PruneWeights(sparsity=0.5)(dense, Context(DEVICE)).graph
    data = Calibration.from_arrays({"x": normal(16, 8)}, dense.inputs)
    with pytest.raises(UnusableInput, match="no gradient through Hardmax"):
        FAST(sparse, Context(DEVICE, data, dense=dense))


@pytest.fixture(scope="module")
def answers() -> dict[float, tuple[float, float, float]]:
    """Return accuracies by sparsity: dense, refitted layer by layer, and healed.

    512 rows without labels, of which healing keeps an eighth to judge by.
    """
    task: dict[str, Any] = {"classes": 10, "each": 4, "features": 16}
    net = trained((64, 64), modes(4000, 1, **task), seed=0)
    dense, x, test = as_graph(net, rows=64), modes(512, 50, **task)[0], modes(2048, 99, **task)
    step = align.Heal(epochs=100, rate=0.1, batch=8)
    context = Context(DEVICE, unlabelled(dense, x), dense=dense)
    found = {}
    for sparsity in (0.5, 0.75, 0.85):
        sparse = PruneWeights(sparsity=sparsity)(dense, context).graph
        supported = [sparse.constants()[f"w{i}"] != 0 for i in range(3)]
        # Thousands of small steps: on several threads they mostly wait for each other.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(oracle, "cores", lambda: 1)
            patch.setattr(training, "spread_over_cores", lambda work, all_: [*map(work, all_)])
            healed = step(sparse, context).graph
        found[sparsity] = (
            accuracy(dense, test),
            refitted(net, supported, x).accuracy(*test),
            accuracy(healed, test),
        )
    return found


def refitted(net: Perceptron, supported: Sequence[np.ndarray], x: np.ndarray) -> Perceptron:
    """Return the least squares fit of each layer in turn, its bias the weight of a 1."""
    fitted = Perceptron([], [])
    dense = now = x
    for weights, bias, kept in zip(*net, supported, strict=True):
        wide, ones = np.column_stack([weights, bias]), np.ones((len(x), 1))
        dense, now = np.hstack([dense, ones]), np.hstack([now, ones])
        gram = now.T @ now
        hessian = obs.damped(gram, 0.01)
        target = obs.asymmetric_target(wide, wide @ dense.T @ now, gram, hessian)
        support = np.column_stack([kept, np.ones(len(kept), bool)])
        found = obs.refit(target, hessian, Tile(1), support)
        fitted.weights.append(found[:, :-1])
        fitted.biases.append(found[:, -1])
        dense, now = np.maximum(dense @ wide.T, 0), np.maximum(now @ found.T, 0)
    return fitted


def test_without_labels_most_of_the_accuracy_comes_back_at_85_percent(
    answers: dict[float, tuple[float, float, float]],
) -> None:
    dense, _, healed = answers[0.85]
    assert healed >= 0.6 * dense


def test_by_gradient_more_comes_back_than_by_least_squares_and_the_more_the_sparser(
    answers: dict[float, tuple[float, float, float]],
) -> None:
    ahead = [healed - least for _, least, healed in answers.values()]
    # At 50 % both are within half a percent of the dense network.
    assert ahead[0] > -0.005
    assert (np.diff(ahead) > 0.02).all()


def test_what_training_makes_worse_stays_as_it_was_and_that_is_said() -> None:
    said: list[str] = []
    context = Context(DEVICE, calibration(), dense=three_layers(), report=said.append)
    outcome = align.Heal(epochs=2, rate=0.9, batch=8)(pruned(), context)
    for name, values in pruned().constants().items():
        np.testing.assert_array_equal(outcome.graph.constants()[name], values)
    (note,) = outcome.notes
    assert "no epoch brought the answers" in note.reason
    assert note.reason in said[-1]


def test_outputs_without_a_gradient_and_without_positions_are_no_obstacle() -> None:
    text = """g (float[1,8] x) => (float[4] y, bool[1,4] z) {
        a = MatMul(x, w)  y = Squeeze(a)  b = MatMul(x, v)  z = Greater(b, zero)
    }"""
    weights: dict[str, Any] = {"w": normal(8, 4), "v": normal(8, 4), "zero": np.float32(0)}
    dense = small_graph(text, **weights)
    sparse = PruneWeights(sparsity=0.5)(dense, Context(DEVICE)).graph
    data = Calibration.from_arrays({"x": correlated(64, 1, 8)[:, 0]}, dense.inputs)
    step = align.Heal(epochs=20, rate=0.02, batch=8, loss="squares")
    healed = step(sparse, Context(DEVICE, data, dense=dense)).graph
    assert not np.array_equal(healed.constants()["w"], sparse.constants()["w"])
    np.testing.assert_array_equal(healed.constants()["v"], sparse.constants()["v"])


def test_weights_that_are_not_float32_are_refused() -> None:
    text = "g (double[1,8] x) => (double[1,4] y) { y = MatMul(x, w) }"
    dense = small_graph(text, w=normal(8, 4).astype(np.float64))
    sparse = PruneWeights(sparsity=0.5)(dense, Context(DEVICE)).graph
    data = Calibration.from_arrays({"x": normal(16, 8).astype(np.float64)}, dense.inputs)
    with pytest.raises(UnusableInput, match="no weights of the network are float32"):
        FAST(sparse, Context(DEVICE, data, dense=dense))


def test_torch_has_as_many_threads_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        heal()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
