"""cluster-weights: few values for a layer's weights, the best; and what rounding costs."""

import itertools
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers, weighted_layers
from tilewright.layout import Tile
from tilewright.passes.prune import obs
from tilewright.passes.quantize.cluster import ClusterWeights, Grid
from tilewright.passes.quantize.codebook import best_codebook
from tilewright.passes.quantize.rounding import rounded
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Context

HIDDEN = """g (float[1,24] x) => (float[1,8] y) {
    a = Gemm (x, v, b)  h = Relu(a)  y = MatMul(h, w)
}"""


def network(**weights: np.ndarray) -> Graph:
    known = {"v": normal(24, 32), "b": normal(32), "w": normal(32, 8, seed=1)}
    return small_graph(HIDDEN, **{**known, **weights})


def examples(samples: int = 256) -> np.ndarray:
    # Inputs are correlated: what one is rounded by others can make up for.
    return np.asarray(normal(samples, 24) @ (np.eye(24, dtype=np.float32) + 0.5))


def clustered(graph: Graph, step: ClusterWeights, x: np.ndarray | None = None) -> Graph:
    data = None if x is None else Calibration.from_arrays({"x": x}, graph.inputs)
    return step(graph, Context(DEVICE, data)).graph


def integers_of(graph: Graph) -> dict[str, np.ndarray]:
    """Return the int8 weights that `quantize` makes of each layer's."""
    done = Quantize(activations=False)(graph, Context(DEVICE)).graph
    found = {}
    for layer in linear_layers(done):
        dequantize = layer.node.inputs[1].inputs[0]
        assert isinstance(dequantize.inputs[0], gs.Constant)
        found[layer.name] = layer.as_matrix(dequantize.inputs[0].values)
    return found


# ---- the values ----


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=9, max_size=9), st.integers(3, 6))
def test_no_other_values_are_nearer_to_what_is_counted(counts: list[int], values: int) -> None:
    places = np.arange(-4, 5)

    def cost(taken: Any) -> float:
        nearest = np.abs(places[:, None] - np.array(taken)).min(axis=1)
        return float(np.square(nearest) @ counts)

    found = best_codebook(np.array(counts), values)
    assert len(set(found)) == values
    assert {-4, 0, 4} <= set(found.tolist())
    others = itertools.combinations([-3, -2, -1, 1, 2, 3], values - 3)
    assert cost(found) == min(cost((*each, -4, 0, 4)) for each in others)


# ---- rounding ----


def test_where_inputs_are_independent_each_weight_goes_to_the_nearest_value() -> None:
    weights = normal(5, 7)
    found = rounded(weights, 3.0 * np.eye(7), lambda _, column: np.rint(column))
    np.testing.assert_array_equal(found, np.rint(weights))


def test_what_the_first_column_is_rounded_by_the_others_make_up_for_at_best() -> None:
    weights, x = normal(4, 6).astype(np.float64), normal(6, 40).astype(np.float64)
    hessian = x @ x.T

    def first_to_zero(j: int, column: np.ndarray) -> np.ndarray:
        return column if j else np.zeros_like(column)

    found = rounded(weights, hessian, first_to_zero)
    others = np.repeat([[False] + [True] * 5], 4, axis=0)
    best = obs.refit(weights, hessian, Tile(1), others)
    np.testing.assert_allclose(found, best, rtol=1e-9)


def test_many_columns_are_rounded_as_they_are_one_by_one() -> None:
    # More than are taken together.
    weights, x = normal(3, 150).astype(np.float64), normal(150, 400).astype(np.float64)
    hessian = x @ x.T
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    moved = weights.copy()
    for j in range(150):
        kept = np.rint(moved[:, j])
        owed = (moved[:, j] - kept) / upper[j, j]
        moved[:, j] = kept
        moved[:, j + 1 :] -= np.outer(owed, upper[j, j + 1 :])
    found = rounded(weights, hessian, lambda _, column: np.rint(column))
    np.testing.assert_allclose(found, moved, atol=1e-9)


# ---- the pass ----


@pytest.mark.parametrize("x", [None, examples()], ids=["without data", "with data"])
def test_a_layer_has_as_many_different_integers_and_its_zeros_stay(
    x: np.ndarray | None,
) -> None:
    v = normal(24, 32) * (normal(24, 32, seed=2) > 0)
    graph = clustered(network(v=v), ClusterWeights(values=8), x)
    for name, integers in integers_of(graph).items():
        assert len(np.unique(integers)) <= 8, name
        assert (np.abs(integers).max(axis=1) == 127).all()
    first = next(iter(linear_layers(graph)))
    assert (first.matrix()[v.T == 0] == 0).all()


def test_rounding_in_view_of_the_examples_keeps_more_of_the_answers() -> None:
    graph, x = network(), examples()

    def error(step: ClusterWeights, data: np.ndarray | None) -> float:
        away = 0.0
        for seed in range(20):
            unseen = {"x": normal(1, 24, seed=50 + seed) @ (np.eye(24, dtype=np.float32) + 0.5)}
            found = oracle.run(clustered(graph, step, data), unseen)["y"]
            away += float(np.square(found - oracle.run(graph, unseen)["y"]).sum())
        return away

    # 0.17 here; a sign that is wrong in what is made up for gives more than 1.
    assert error(ClusterWeights(values=8), x) < 0.4 * error(ClusterWeights(values=8), None)


def test_all_values_of_int8_leave_a_layer_as_near_as_int8_is() -> None:
    graph = clustered(network(), ClusterWeights(values=255))
    v = next(iter(linear_layers(network()))).matrix()
    away = np.abs(next(iter(linear_layers(graph))).matrix() - v)
    # Half a step, and what float32 rounds.
    assert (away <= np.abs(v).max(axis=1, keepdims=True) / 127 * 0.5001).all()


def test_values_follow_outputs_and_inputs_that_are_worth_more() -> None:
    # Outputs of a scale of 1e-3 say nothing beside the one of scale 1, nor do dead inputs.
    loud, quiet = np.array([[1.0, 0.5, 0.25]]), 1e-3 * np.array([[1.0, 0.7, 0.1]] * 50)
    weights, all_of_it = np.vstack([loud, quiet]), np.ones((51, 3), bool)
    by_outputs = Grid.of(weights, all_of_it, np.ones(3), 5)
    assert {32, 64} <= set(by_outputs.codebook.tolist())
    by_inputs = Grid.of(np.array([[1.0, 0.5, 0.25]]), all_of_it[:1], np.array([1.0, 1, 0]), 4)
    assert by_inputs.codebook.tolist() == [-127, 0, 64, 127]


def test_a_bias_makes_up_for_what_rounding_does_to_the_mean() -> None:
    x = examples() + 3
    graph = clustered(network(), ClusterWeights(values=8), x)
    both = [next(iter(linear_layers(g))) for g in (network(), graph)]
    biases = [layer.node.inputs[2].values for layer in both]
    means = [
        x.mean(axis=0) @ layer.matrix().T + b for layer, b in zip(both, biases, strict=True)
    ]
    # What float32 rounds.
    np.testing.assert_allclose(means[1], means[0], atol=1e-4)
    assert np.abs(biases[1] - biases[0]).max() > 0.01


def test_grouped_and_transposed_convolutions_go_to_the_nearest_values_even_with_data() -> None:
    text = """g (float[1,8,4,4] x) => (float[1,8,5,5] y) {
        a = Conv <group = 8, kernel_shape = [1, 1]> (x, d)
        b = Conv (a, p)
        y = ConvTranspose (b, t)
    }"""
    weights = {"d": normal(8, 1, 1, 1), "p": normal(8, 8, 1, 1), "t": normal(8, 8, 2, 2)}
    graph = small_graph(text, **weights)
    found = {}
    examples = Calibration.from_arrays({"x": normal(32, 8, 4, 4)}, graph.inputs)
    for name, data in (("data", examples), ("none", None)):
        done = ClusterWeights(values=8)(graph, Context(DEVICE, data)).graph
        found[name] = {str(la.weight.name): la.matrix() for la in weighted_layers(done)}
    for name in ("d", "t"):
        np.testing.assert_array_equal(found["data"][name], found["none"][name])
        assert np.abs(found["none"][name]).max() == np.abs(weights[name]).max()
    assert (found["data"]["p"] != found["none"]["p"]).any()


def test_weights_that_others_read_or_that_are_no_float32_stay_and_are_noted() -> None:
    text = """g (float[1,6] x, float16[1,6] z) => (float[1,6] y, float16[1,6] u) {
        a = MatMul(x, w)  y = MatMul(a, w)  u = MatMul(z, h)
    }"""
    graph = small_graph(text, w=normal(6, 6), h=normal(6, 6).astype(np.float16))
    done = ClusterWeights(values=8)(graph, Context(DEVICE))
    assert sorted(note.reason for note in done.notes) == [
        "not clustered: its weights are float16 [6, 6]",
        "not clustered: w is read elsewhere too",
        "not clustered: w is read elsewhere too",
    ]
    after = {layer.name: layer.matrix() for layer in linear_layers(done.graph)}
    for layer in linear_layers(graph):
        np.testing.assert_array_equal(after[layer.name], layer.matrix())


def test_a_layer_of_zeros_and_a_named_one_stay_as_they_are() -> None:
    graph = network(w=np.zeros((32, 8), np.float32))
    first, second = linear_layers(graph)
    done = ClusterWeights(skip=(first.name,))(graph, Context(DEVICE))
    assert [(note.node, note.reason) for note in done.notes] == [
        (first.name, "not clustered: it is named in skip")
    ]
    for before, after in zip((first, second), linear_layers(done.graph), strict=True):
        np.testing.assert_array_equal(before.matrix(), after.matrix())


def test_a_weight_that_a_branch_reads_stays_for_it() -> None:
    text = """g (bool c, float[2,6] x) => (float[2,6] y) {
        a = MatMul(x, w)
        y = If (c) <
            then_branch = then () => (float[2,6] t) { t = MatMul(a, w) },
            else_branch = else () => (float[2,6] e) { e = Identity(a) }
        >
    }"""
    graph = small_graph(text, w=normal(6, 6))
    done = ClusterWeights(values=4)(graph, Context(DEVICE))
    assert [note.reason for note in done.notes] == ["not clustered: w is read elsewhere too"]
    feeds = {"c": np.array(True), "x": normal(2, 6)}
    np.testing.assert_array_equal(
        oracle.run(done.graph, feeds)["y"], oracle.run(graph, feeds)["y"]
    )


@pytest.mark.parametrize("values", [2, 0, -1, 256])
def test_numbers_of_values_that_cannot_be_are_refused(values: int) -> None:
    with pytest.raises(UnusableInput, match="values"):
        ClusterWeights(values=values)
