"""Criteria by name: what each looks at, what goes by it, and what it asks for."""

import dataclasses
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from tests.graphs import agree, context
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes import PASSES
from tilewright.passes.prune import criteria, rank_entries, score_weights
from tilewright.passes.prune.channels import PruneChannels
from tilewright.passes.prune.pseudo_labels import sample_scores
from tilewright.passes.prune.rank_entries import SCORES, ranked
from tilewright.passes.prune.removable import removable
from tilewright.passes.prune.score_entries import Entries
from tilewright.passes.prune.scoring import CRITERIA, criteria_of
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.pipeline import Pipeline

UNSEEN, DEAD, SMALL = 2, 1, 3  # channels: nothing reads it; never fires; a small filter


def classifier() -> Graph:
    """Return x (1, 4) -> 6, Relu -> scores of 3 classes, with three odd channels."""
    w1, b1, w2 = normal(4, 6), normal(6, seed=1), normal(6, 3, seed=2)
    w2[UNSEEN] = 0
    b1[DEAD] = -100
    w1[:, SMALL] *= 0.01
    b1[SMALL] = 0.01
    w2[SMALL] *= 100
    return small_graph(
        """g (float[1,4] x) => (float[1,3] y) {
            a = MatMul(x, w1)  b = Add(a, b1)  r = Relu(b)  y = MatMul(r, w2)
        }""",
        w1=w1,
        b1=b1,
        w2=w2,
    )


def data(samples: int = 40) -> Calibration:
    x = np.random.default_rng(5).standard_normal((samples, 4)).astype(np.float32)
    return Calibration.from_arrays({"x": x}, classifier().inputs)


def hidden(graph: Graph, calibration: Calibration) -> np.ndarray:
    """Return what the second layer reads, (samples, channels)."""
    w = graph.constants()
    x = np.concatenate([feeds["x"] for feeds in calibration.feeds()]).astype(np.float64)
    return np.asarray(np.maximum(x @ w["w1"] + w["b1"], 0))


def entries(graph: Graph, calibration: Calibration | None) -> Entries:
    couplings = Couplings(graph)
    found = removable(graph, couplings, ends=True, smallest=0, skip=())
    return Entries(graph, couplings, found.cuts, calibration, 0)


@cache
def scores(criterion: str) -> np.ndarray:
    """Return what a criterion says of the classifier's channels."""
    if "gradients" in CRITERIA[criterion].needs:
        pytest.importorskip("torch")
    (found,) = SCORES[criterion](entries(classifier(), data())).values()
    return found


def slopes() -> np.ndarray:
    """Return r dL/dr of each channel, (samples, channels), L being the pseudo-labels' loss."""
    r, w2 = hidden(classifier(), data()), classifier().constants()["w2"].astype(np.float64)
    logits = r @ w2
    slope = softmax(logits, axis=1) - np.eye(3)[logits.argmax(axis=1)]
    return np.asarray(r * (slope @ w2.T))


def test_every_criterion_of_a_pass_is_a_search_or_a_score() -> None:
    assert criteria_of("prune-channels") == ["obs", *rank_entries.SCORES]
    assert criteria_of("prune-tiles") == ["obs", *score_weights.SCORES]
    for name in ("prune-channels", "prune-tiles"):
        step = PruneChannels if name == "prune-channels" else PruneTiles
        for criterion in criteria_of(name):
            assert step(criterion=criterion).criterion == criterion


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_a_channel_that_nothing_reads_is_least_important(criterion: str) -> None:
    assert scores(criterion)[UNSEEN] == scores(criterion).min()


@pytest.mark.parametrize("criterion", ["l2", "leverage", "utilization"])
def test_who_looks_at_what_is_written_does_not_see_that_nothing_reads_it(
    criterion: str,
) -> None:
    assert scores(criterion)[UNSEEN] > scores(criterion).min()


@pytest.mark.parametrize("criterion", ["taylor", "leverage", "utilization", "reconstruction"])
def test_a_channel_that_never_fires_is_worth_nothing(criterion: str) -> None:
    assert scores(criterion)[DEAD] == pytest.approx(0, abs=1e-12)


def test_what_tells_no_classes_apart_is_chosen_last() -> None:
    assert set(np.argsort(scores("discrimination"))[:2]) == {DEAD, UNSEEN}


@pytest.mark.parametrize("criterion", ["magnitude", "l2"])
def test_weights_alone_do_not_say_what_never_fires(criterion: str) -> None:
    assert scores(criterion)[DEAD] > scores(criterion).min()


def test_a_small_filter_with_large_weights_behind_it_goes_by_l2_alone() -> None:
    assert scores("l2").argmin() == SMALL
    assert scores("magnitude").argmax() == SMALL


def test_l2_is_the_norm_of_the_filter() -> None:
    norms = np.linalg.norm(classifier().constants()["w1"], axis=0)
    np.testing.assert_allclose(scores("l2") / scores("l2").sum(), norms / norms.sum(), 1e-6)


def test_taylor_is_the_mean_slope_of_a_gate_on_the_channel() -> None:
    # Forward and backward are float32.
    expected = np.abs(slopes()).mean(axis=0)
    np.testing.assert_allclose(scores("taylor"), expected, rtol=1e-3, atol=1e-6)


def test_reconstruction_is_the_sum_of_those_slopes() -> None:
    """Behind a Relu a filter with its bias, times its gradient, is what the gate's slope is."""
    expected = np.abs(slopes().sum(axis=0))
    np.testing.assert_allclose(scores("reconstruction"), expected, rtol=1e-3, atol=1e-5)


def test_leverage_is_that_of_the_inputs_of_the_reader() -> None:
    r = hidden(classifier(), data())
    gram = r.T @ r
    expected = criteria.leverage(gram, 0.01 * np.diag(gram).mean())
    np.testing.assert_allclose(scores("leverage"), expected, rtol=1e-4, atol=1e-9)


def test_utilization_tells_the_networks_own_classes_apart() -> None:
    r = hidden(classifier(), data())
    classes = (r @ classifier().constants()["w2"]).argmax(axis=1)
    one = criteria.utilization(r[:, :, None], classes)
    np.testing.assert_allclose(scores("utilization"), one, rtol=1e-4, atol=1e-9)


def test_without_classes_taylor_measures_the_answer_itself() -> None:
    """The answer is one number y = sum of r w: without a channel it changes by r w, exactly."""
    pytest.importorskip("torch")
    w1, w2 = normal(4, 5), normal(5, 1, seed=1)
    graph = small_graph(
        """g (float[1,4] x) => (float[1,1] y) {
            a = MatMul(x, w1)  r = Tanh(a)  y = MatMul(r, w2)
        }""",
        w1=w1,
        w2=w2,
    )
    assert sample_scores(graph) is None
    (found,) = SCORES["taylor"](entries(graph, data())).values()
    x = np.concatenate([feeds["x"] for feeds in data().feeds()])
    parts = np.tanh(x @ w1) * w2[:, 0]
    expected = np.abs(parts / np.abs(parts.sum(axis=1, keepdims=True))).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("criterion", criteria_of("prune-channels"))
def test_what_goes_by_any_criterion_was_masked(criterion: str) -> None:
    if "gradients" in CRITERIA[criterion].needs:
        pytest.importorskip("torch")
    graph, calibration = classifier(), data()
    options: dict[str, Any] = {"criterion": criterion, "multiple": 1, "smallest": 0}
    bare = PruneChannels(0.5, ends=True, refit=False, **options)
    pruned = bare(graph, context(calibration)).graph
    gone = ~np.isin(graph.constants()["b1"], pruned.constants()["b1"])
    assert gone.sum() == 3
    if criterion != "obs":
        (order,) = ranked(criterion, entries(graph, calibration)).values()
        assert set(np.flatnonzero(gone)) == set(order[:3])
    masked = graph.edit()
    (reader,) = (each for each in linear_layers(masked) if each.weight.name == "w2")
    reader.replace(np.where(gone, 0, reader.matrix()))
    agree(masked, pruned, next(calibration.feeds()))
    refitted = PruneChannels(0.5, ends=True, **options)(graph, context(calibration)).graph
    if criterion != "obs":
        # obs looks again where nothing is refitted; a score does not.
        np.testing.assert_array_equal(refitted.constants()["w1"], pruned.constants()["w1"])
    if not np.array_equal(refitted.constants()["w2"], pruned.constants()["w2"]):
        assert error(refitted, graph) <= error(pruned, graph)


def error(pruned: Graph, dense: Graph) -> float:
    """Return the squared error on the calibration data."""
    found, expected = oracle.session(pruned), oracle.session(dense)
    return sum(
        float(
            np.square(
                oracle.outputs_of(found, f)["y"] - oracle.outputs_of(expected, f)["y"]
            ).sum()
        )
        for f in data().feeds()
    )


# ---- tiles ----


def tiled(criterion: str, *, refit: bool = False, tile: str = "1x1") -> np.ndarray:
    """Return the second layer's matrix, (outputs, inputs), without half of its tiles."""
    step = PruneTiles(0.5, criterion, tile=tile, ends=True, smallest=0, refit=refit)
    found = step(classifier(), context(data())).graph.constants()["w2"]
    return np.asarray(found.T)


def test_by_taylor_weights_go_whose_squared_change_is_least() -> None:
    pytest.importorskip("torch")
    r, w2 = hidden(classifier(), data()), classifier().constants()["w2"].astype(np.float64)
    logits = r @ w2
    slope = softmax(logits, axis=1) - np.eye(3)[logits.argmax(axis=1)]
    changes = np.einsum("ni,nk,ik->nik", r, slope, w2)
    kept = np.argsort(np.square(changes).mean(axis=0), axis=0)[3:]
    expected = np.zeros(w2.shape, dtype=bool)
    np.put_along_axis(expected, kept, True, axis=0)
    np.testing.assert_array_equal(tiled("taylor") != 0, (expected & (w2 != 0)).T)


def test_by_leverage_the_same_columns_go_in_every_row() -> None:
    w2 = classifier().constants()["w2"].T
    kept = np.argsort(scores("leverage"))[3:]
    expected = np.where(np.isin(np.arange(6), kept), w2, 0)
    np.testing.assert_array_equal(tiled("leverage"), expected)


def test_what_magnitude_leaves_is_refitted_by_least_squares() -> None:
    dense = classifier().constants()["w2"].T
    bare, refitted = tiled("magnitude", tile="3x1"), tiled("magnitude", refit=True, tile="3x1")
    np.testing.assert_array_equal(bare, np.where(bare != 0, dense, 0))
    support = np.flatnonzero(bare.any(axis=0))
    graph = PruneTiles(
        0.5, "magnitude", tile="3x1", ends=True, smallest=0, damp=1e-9, skip=(first(),)
    )(classifier(), context(data())).graph
    found = graph.constants()["w2"].T
    r = hidden(classifier(), data())
    best = np.linalg.lstsq(r[:, support], r @ dense.T, rcond=None)[0].T
    # Damping, and activations in float32.
    np.testing.assert_allclose(found[:, support], best, rtol=1e-3, atol=1e-3)
    assert set(np.flatnonzero(refitted.any(axis=0))) == set(support)


def first() -> str:
    return next(linear_layers(classifier())).name


# ---- what is refused ----


@pytest.mark.parametrize("criterion", ["taylor", "leverage", "utilization", "discrimination"])
def test_without_examples_what_looks_at_them_says_so(criterion: str) -> None:
    with pytest.raises(UnusableInput, match=rf"criterion={criterion} .* Give --calibration"):
        PruneChannels(criterion=criterion, ends=True)(classifier(), context())


def test_what_looks_at_weights_alone_needs_no_examples() -> None:
    step = PruneChannels(0.5, "l2", multiple=1, ends=True, smallest=0)
    kept = step(classifier(), context()).graph.constants()["w1"]
    assert kept.shape == (4, 3)
    assert np.abs(kept).max(axis=0).min() > 0.1


@pytest.mark.parametrize("step", [PruneChannels, PruneTiles])
def test_without_torch_taylor_says_what_to_install(
    step: type[PruneChannels] | type[PruneTiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnusableInput, match=r"criterion=taylor needs gradients.*pip install"):
        step(criterion="taylor", ends=True)(classifier(), context(data()))


@pytest.mark.parametrize(
    "steps",
    [
        "heal",
        "prune-gradually{ends=true,smallest=0}",
        "prune-channels{criterion=taylor}",
        "prune-channels{allocate=tolerance}",
    ],
)
def test_torch_is_missed_before_the_first_pass_runs(
    steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said: list[str] = []
    pipeline = Pipeline.parse(f"prune-tiles{{ends=true,smallest=0}},{steps}", PASSES)
    known = dataclasses.replace(context(data()), report=said.append)
    with pytest.raises(UnusableInput, match="torch, which computes them, is not installed"):
        pipeline.run(classifier(), known)
    assert said == []


@pytest.mark.parametrize("criterion", ["utilization", "discrimination"])
def test_classes_are_asked_of_outputs_that_have_them(criterion: str) -> None:
    graph = small_graph(
        "g (float[1,4] x) => (float[1,6] y) { a = MatMul(x, w1)  y = Tanh(a) }", w1=normal(4, 6)
    )
    with pytest.raises(UnusableInput, match=r'no output .* class scores.* "y" .*Choose obs'):
        PruneChannels(criterion=criterion)(graph, context(data()))


def test_samples_of_one_class_tell_nothing_apart() -> None:
    x = np.ones((5, 4), np.float32)
    same = Calibration.from_arrays({"x": x}, classifier().inputs)
    step = PruneChannels(criterion="utilization", multiple=1, ends=True, smallest=0)
    with pytest.raises(UnusableInput, match=r"class \d for all 5 calibration samples"):
        step(classifier(), context(same))


def test_what_no_layer_writes_has_no_filters() -> None:
    graph = small_graph(
        """g (int64[1,5] x) => (float[1,5,3] y) {
            a = Gather(table, x)  r = Tanh(a)  y = MatMul(r, w)
        }""",
        table=normal(7, 8),
        w=normal(8, 3),
    )
    step = PruneChannels(0.5, "l2", multiple=1, ends=True, smallest=0)
    with pytest.raises(UnusableInput, match=r"criterion=l2 .* no linear layer does"):
        step(graph, context())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"rankings": ("l2",)}, "rankings is l2, but must be two of"),
        ({"rankings": ("l2", "obs")}, r"rankings is l2\|obs"),
        ({"rankings": ("l2", "l2")}, r"rankings is l2\|l2"),
    ],
)
def test_rankings_are_two_different_scores(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        PruneChannels(**options)


def test_channels_have_criteria_that_tiles_have_not() -> None:
    with pytest.raises(UnusableInput, match="criterion is l2, but must be one of obs, magn"):
        PruneTiles(criterion="l2")


@pytest.mark.parametrize(
    ("behind", "scored"),
    [
        ("y = MatMul(r, w2)", "y"),
        ("z = MatMul(r, w2)  y = Softmax(z)", "z"),
        ("z = MatMul(r, w2)  a = Add(z, b2)  y = LogSoftmax(a)", "a"),
        ("z = MatMul(r, w2)  y = Tanh(z)", None),
        ("z = MatMul(r, w2)  y = Add(z, z)", None),
    ],
)
def test_scores_of_classes_come_from_a_linear_layer(behind: str, scored: str | None) -> None:
    text = "g (float[1,4] x) => (float[1,3] y) { r = Relu(x) " + behind + " }"
    assert sample_scores(small_graph(text, w2=normal(4, 3), b2=normal(3))) == scored
