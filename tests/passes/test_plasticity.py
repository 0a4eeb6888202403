"""How well a network recovers from what was pruned, and what allocators make of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tests.graphs import DEVICE, context, correlated, three_layers
from tests.passes.perceptrons import as_graph, modes, trained, unlabelled
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.channels import PruneChannels
from tilewright.passes.prune.magnitude import PruneWeights
from tilewright.passes.prune.probe import HELD_OUT, Probe
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.pipeline import Pipeline
from tilewright.protocol import Context, Outcome

torch = pytest.importorskip("torch")
align = pytest.importorskip("tilewright.passes.heal.align")
training = pytest.importorskip("tilewright.passes.heal.training")


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks on several threads wait for each other most of the time."""
    monkeypatch.setattr(oracle, "cores", lambda: 1)
    monkeypatch.setattr(training, "spread_over_cores", lambda work, all_: [*map(work, all_)])


def data() -> Calibration:
    return Calibration.from_arrays({"x": correlated(24, 16, 12)}, three_layers().inputs)


def zeros(graph: Graph) -> list[float]:
    return [float((layer.matrix() == 0).mean()) for layer in linear_layers(graph)]


@dataclass(frozen=True)
class HealOne:
    """A training that makes one layer as good as new, and no other."""

    layer: int

    name: ClassVar[str] = "heal"
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        assert context.dense is not None
        assert context.calibration is not None
        assert context.calibration.samples == 18  # one of four judges
        healed = context.dense.edit()
        pairs = zip(linear_layers(healed), linear_layers(graph), strict=True)
        for index, (layer, pruned) in enumerate(pairs):
            if index != self.layer:
                layer.replace(pruned.matrix())
        return Outcome(healed)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_recovers_loses_more(which: int) -> None:
    step = PruneTiles(0.3, allocate="plasticity", tile="1x1", ends=True, smallest=0)
    found = step(three_layers(), Context(DEVICE, data(), behind=(HealOne(which),))).graph
    shares = zeros(found)
    sizes = np.array([layer.matrix().size for layer in linear_layers(found)])
    # It costs nothing, so up to nine tenths of it go before anything of the others.
    assert shares[which] == pytest.approx(min(0.9, 0.3 * sizes.sum() / sizes[which]), abs=0.1)


@pytest.mark.parametrize("step", [PruneTiles, PruneChannels])
def test_a_pipeline_hands_over_the_training_that_follows(
    step: type[PruneTiles] | type[PruneChannels],
) -> None:
    prune = step(0.3, allocate="plasticity", ends=True, smallest=0)
    pipeline = Pipeline((prune, align.Heal(epochs=1, rate=0.01, batch=8)))
    said: list[str] = []
    known = Context(DEVICE, data(), report=said.append)
    graph = pipeline.run(three_layers(), known, reproductions=None).graph
    smaller = sum(values.size for values in graph.constants().values()) < sum(
        values.size for values in three_layers().constants().values()
    )
    assert smaller or sum(zeros(graph)) > 0
    assert any(f"{prune.name}: probing" in text for text in said)


def test_without_a_training_behind_it_is_refused() -> None:
    prune = PruneTiles(allocate="plasticity")
    with pytest.raises(UnusableInput, match="Put heal behind it in the pipeline"):
        prune(three_layers(), context(data()))
    with pytest.raises(UnusableInput, match="Give --calibration"):
        prune(three_layers(), context())


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
    """Return the shares of the error that training takes away, after pruning at each rate."""
    fitted, held = unlabelled(dense, modes(768, 50)[0]).held_out(HELD_OUT)
    probe = Probe(dense, held)
    heal = align.Heal(epochs=30, rate=0.005, batch=8, loss="squares")
    shares = []
    for rate in rates:
        pruned = graph.edit()
        all_layers(pruned, rate)
        healed = heal(pruned, Context(DEVICE, fitted, dense=dense)).graph
        shares.append(1 - probe.error(healed) / probe.error(pruned))
    return np.array(shares)


def test_the_more_is_pruned_the_less_recovers(perceptron: Graph) -> None:
    shares = recovered(perceptron, perceptron, (0.5, 0.7, 0.85, 0.95))
    assert (np.diff(shares) < 0).all()


def test_the_sparser_a_network_was_before_the_less_recovers(perceptron: Graph) -> None:
    shares = []
    for sparsity in (0.0, 0.1, 0.5, 0.7):
        sparse = PruneWeights(sparsity=sparsity)(perceptron, Context(DEVICE)).graph
        shares.append(recovered(sparse, perceptron, (0.5,))[0])
    assert (np.diff(shares) < 0).all()
