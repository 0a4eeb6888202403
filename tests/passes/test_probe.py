"""What removing something does to the answers: measured at a few counts, known between."""

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.probe import Probe

MATRIX = "g (float[2,8] x) => (float[2,5] y) { h = MatMul(x, w)  y = Add(h, b) }"
BESIDE_A_CONVOLUTION = """g (float[1,3,4,4] x) => (float[1,16,5] y) {
    c = Conv <kernel_shape = [1, 1]> (x, k)  r = Reshape <allowzero = 0> (c, shape)
    t = Transpose <perm = [0, 2, 1]> (r)  y = MatMul(t, w)
}"""


def matrix() -> Graph:
    return small_graph(MATRIX, w=normal(8, 5), b=normal(5, seed=1))


def beside_a_convolution() -> Graph:
    shape = np.array([1, 8, 16], np.int64)
    return small_graph(
        BESIDE_A_CONVOLUTION, k=normal(8, 3, 1, 1), w=normal(8, 5, seed=1), shape=shape
    )


def data(graph: Graph) -> Calibration:
    one, *shape = graph.inputs[0].shape
    each = shape if one == 1 else [one, *shape]
    return Calibration.from_arrays({"x": normal(12, *each, seed=7)}, graph.inputs)


def rebuilt(graph: Graph, **changes: np.ndarray) -> Graph:
    constants = graph.constants() | changes
    text = MATRIX if "b" in constants else BESIDE_A_CONVOLUTION
    return small_graph(text, **constants)


@pytest.mark.parametrize("names", [("w",), ("b",), ("w", "b")])
def test_matrices_and_biases_are_changed_without_loading_the_network_anew(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = matrix()
    answers = Answers(graph, data(graph))
    changes = {name: graph.constants()[name] * np.float32(0.5) for name in names}
    expected = answers.error(rebuilt(graph, **changes))
    (layer,) = linear_layers(graph)
    probe = Probe(graph, data(graph), [layer.name])
    monkeypatch.setattr(Probe, "error", None)  # which would load it
    # Products are summed up in the order that onnxruntime's two kernels choose.
    assert probe.error_with(changes) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("names", [("k",), ("w",), ("k", "w")])
def test_convolutions_are_changed_too(names: tuple[str, ...]) -> None:
    graph = beside_a_convolution()
    changes = {name: graph.constants()[name] * np.float32(0.5) for name in names}
    expected = Answers(graph, data(graph)).error(rebuilt(graph, **changes))
    layers = [layer.name for layer in linear_layers(graph)]
    found = Probe(graph, data(graph), layers).error_with(changes)
    assert found == pytest.approx(expected, rel=1e-5)


def test_between_measured_counts_answers_suffer_as_the_place_does() -> None:
    """Of 16 entries 8 and 16 are tried, and more where the place's losses are not known."""
    graph = matrix()
    probe = Probe(graph, data(graph))
    tried = []

    def without(count: int) -> dict[str, np.ndarray]:
        tried.append(count)
        return {"w": graph.constants()["w"] * np.float32(1 - count / 16)}

    losses = np.square(np.arange(1, 17) / 16)
    found = probe.costs(without, 16, losses)
    assert tried == [8, 16]
    # The answers are linear in the weights: their squared errors are those losses, scaled.
    np.testing.assert_allclose(found, losses * found[-1], rtol=1e-4)
    straight = probe.costs(without, 16)
    assert tried[2:] == [2, 4, 8, 12, 16]
    np.testing.assert_allclose(straight[[1, 3, 7, 11, 15]], found[[1, 3, 7, 11, 15]], rtol=1e-4)
    assert straight[5] == pytest.approx((straight[3] + straight[7]) / 2)
    assert probe.costs(without, 0).shape == (0,)
