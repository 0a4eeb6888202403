"""How well a network recovers from what was pruned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.graphs import DEVICE, correlated, three_layers
from tests.passes.perceptrons import as_graph, modes, trained, unlabelled
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Tile
from tilewright.passes.prune.allocate import Place, threshold
from tilewright.passes.prune.magnitude import PruneWeights
from tilewright.protocol import Context

torch = pytest.importorskip("torch")
plastic = pytest.importorskip("tilewright.passes.heal.plasticity")
align = pytest.importorskip("tilewright.passes.heal.align")
training = pytest.importorskip("tilewright.passes.heal.training")

RATES = (0.25, 0.5, 0.75)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks on several threads wait for each other most of the time."""
    monkeypatch.setattr(oracle, "cores", lambda: 1)
    monkeypatch.setattr(training, "spread_over_cores", lambda work, all_: [*map(work, all_)])


def table(at_once: Sequence[Sequence[float]], healed: Sequence[Sequence[float]]) -> Any:
    return plastic.Plasticity(("a", "b"), RATES, np.array(at_once), np.array(healed))


def test_what_recovers_is_the_share_of_the_error_that_healing_takes_away() -> None:
    found = table([[1, 2, 4], [1, 0, 4]], [[0.5, 1.5, 4], [2, 0, 1]])
    np.testing.assert_allclose(found.recovered, [[0.5, 0.25, 0], [-1, 1, 0.75]])


def test_costs_are_interpolated_between_the_rates_and_never_fall() -> None:
    found = table([[9, 9, 9], [9, 9, 9]], [[1, 2, 4], [2, 1, 3]])
    places = [Place("b", 8, 6, 1, 1.0), Place("a", 8, 5, 1, 1.0)]
    b, a = found.costs(places)
    np.testing.assert_allclose(b, [1, 2, 2, 2, 2.5, 3])
    np.testing.assert_allclose(a, [0.5, 1, 1.5, 2, 3])


def test_an_allocator_goes_by_what_is_left_after_healing() -> None:
    # At once a suffers less, but b is as good as new after a while.
    found = table([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [0, 0, 0.1]])
    places = [Place(name, 8, 6, 1, 1.0) for name in ("a", "b")]
    assert threshold(places, found.costs(places), 6 / 16) == [0, 6]


def test_each_place_is_pruned_and_healed_by_itself() -> None:
    graph = three_layers()
    layers = [layer.name for layer in linear_layers(graph)][:2]
    prunings = {name: plastic.without_smallest_tiles(name, Tile(4)) for name in layers}
    data = Calibration.from_arrays({"x": correlated(24, 16, 12)}, graph.inputs)
    said: list[str] = []
    context = Context(DEVICE, data, report=said.append)
    healing = align.Heal(epochs=6, rate=0.01, batch=8)
    found = plastic.plasticity(graph, prunings, (0.0, 0.5), healing, context)
    assert said == [
        f"plasticity: {name} at {rate}" for name in layers for rate in ("0%", "50%")
    ]
    assert found.places == tuple(layers)
    # Nothing was pruned: what is healed is the dense network, up to the rounding of float32.
    np.testing.assert_allclose(found.at_once[:, 0], 0, atol=1e-10)
    np.testing.assert_allclose(found.healed[:, 0], 0, atol=1e-6)
    assert (found.at_once[:, 1] > 0.01).all()
    assert (found.healed[:, 1] < found.at_once[:, 1]).all()
    for name, values in graph.constants().items():
        np.testing.assert_array_equal(values, three_layers().constants()[name])


def test_without_data_it_is_refused() -> None:
    with pytest.raises(UnusableInput, match="Give --calibration"):
        plastic.plasticity(three_layers(), {}, (0.5,), align.Heal(), Context(DEVICE))


def all_layers(graph: Graph, rate: float) -> None:
    """Drop a share of each layer's weights that are not zero yet, by magnitude."""
    for layer in linear_layers(graph):
        sizes = np.abs(layer.matrix())
        smallest = np.quantile(sizes[sizes > 0], rate)
        layer.replace(np.where(sizes < smallest, 0, layer.matrix()))


@pytest.fixture(scope="module")
def perceptron() -> Graph:
    return as_graph(trained((32, 32), modes(2000, 1), seed=0), rows=64)


def recovered(graph: Graph, dense: Graph, rates: Sequence[float]) -> np.ndarray:
    data = unlabelled(dense, modes(768, 50)[0])
    healing = align.Heal(epochs=30, rate=0.005, batch=8, loss="squares")
    context = Context(DEVICE, data, dense=dense)
    found = plastic.plasticity(graph, {"all": all_layers}, rates, healing, context)
    return np.asarray(found.recovered[0])


def test_the_more_is_pruned_the_less_recovers(perceptron: Graph) -> None:
    shares = recovered(perceptron, perceptron, (0.5, 0.7, 0.85, 0.95))
    assert (np.diff(shares) < 0).all()


def test_the_sparser_a_network_was_before_the_less_recovers(perceptron: Graph) -> None:
    shares = []
    for sparsity in (0.0, 0.1, 0.5, 0.7):
        sparse = PruneWeights(sparsity=sparsity)(perceptron, Context(DEVICE)).graph
        shares.append(recovered(sparse, perceptron, (0.5,))[0])
    assert (np.diff(shares) < 0).all()
