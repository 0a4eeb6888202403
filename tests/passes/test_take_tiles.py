"""What is found out about tiles of one layer alone, before any of them is taken."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Tile
from tilewright.passes.prune.choose_tiles import Choice
from tilewright.passes.prune.probe import Probe
from tilewright.passes.prune.question import Part, Question, Removal
from tilewright.passes.prune.take_tiles import TakingTiles, place_of
from tilewright.protocol import silent

BLOCKS = 24


def layer_of(outputs: int, weights: np.ndarray | None = None) -> Graph:
    return small_graph(
        f"g (float[1,40,{BLOCKS}] x) => (float[1,40,{outputs}] y) {{ y = MatMul(x, w) }}",
        w=normal(BLOCKS, outputs) if weights is None else weights,
    )


def removal_of(
    graph: Graph,
    rows: str = "uniform",
    gathers: bool = False,
    damp: float = 0.05,
    refit: bool = True,
    sparsity: float = 0.5,
    magnitudes: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Removal:
    (layer,) = linear_layers(graph)
    taking = TakingTiles(graph, magnitudes, rows, refit=refit, damp=damp, seed=0)
    choices = {layer.name: Choice(Tile(4), sparsity, gathers)}
    places = {layer.name: place_of(layer, Tile(4))}
    (found,) = taking.removals([layer], choices, places, data(graph))
    return found


def data(graph: Graph) -> Calibration:
    x = normal(12, 40, BLOCKS, seed=5) + normal(12, 40, 1, seed=6)
    return Calibration.from_arrays({"x": x}, graph.inputs)


def part_of(removal: Removal) -> Part:
    assert removal.part is not None
    return removal.part()


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("rows", ["uniform", "global"])
def test_of_many_rows_of_tiles_some_speak_for_all(rows: str, gathers: bool) -> None:
    graph = layer_of(256)
    found = removal_of(graph, rows, gathers)
    part = part_of(found)
    some, every = part.without(12)["w"], found.without(12)["w"]
    assert (some != graph.constants()["w"]).any(axis=0).sum() == 128
    assert (every == 0).sum() == 256 * 12
    probe = Probe(graph, data(graph))
    scaled = probe.error_with({"w": some}) / part.share
    # Rows of random weights lose about the same, 32 of 64 within some percent.
    assert scaled == pytest.approx(probe.error_with({"w": every}), rel=0.1)


def test_rows_count_by_what_their_weights_are_worth() -> None:
    weights = normal(BLOCKS, 256) * np.where(np.arange(256) // 4 % 2, 1, 3).astype(np.float32)
    graph = layer_of(256, weights)
    part = part_of(removal_of(graph))
    chosen = (part.without(12)["w"] != weights).any(axis=0)
    assert part.share == pytest.approx(
        np.square(weights[:, chosen]).sum() / np.square(weights).sum(), rel=0.05
    )


def test_rows_count_alike_where_hardly_anything_is_to_go() -> None:
    assert part_of(removal_of(layer_of(256), sparsity=0.01)).share == 0.5


def test_what_some_rows_do_is_scaled_to_all() -> None:
    """The costs that allocators see are those of the whole layer."""
    graph = layer_of(256)
    removal = removal_of(graph)
    question = Question(
        [removal.place], lambda: iter([removal]), graph, data(graph), 0.5, 0.9, silent
    )
    (costs,) = question.costs()
    probe = Probe(graph, data(graph))
    for count in (5, 10, 21):
        assert costs[count - 1] == pytest.approx(
            probe.error_with(removal.without(count)), rel=0.15
        )


def test_of_few_rows_of_tiles_all_are_looked_at() -> None:
    graph = layer_of(128)
    found = removal_of(graph)
    part = part_of(found)
    assert part.share == 1
    np.testing.assert_array_equal(part.without(9)["w"], found.without(9)["w"])


def test_rows_of_a_ragged_last_tile_are_left_to_the_others() -> None:
    graph = layer_of(258)
    part = part_of(removal_of(graph))
    assert part.share == pytest.approx(128 / 258, rel=0.1)
    changed = (part.without(12)["w"] != graph.constants()["w"]).any(axis=0)
    assert changed.sum() == 128
    assert not changed[256:].any()


def test_losses_are_those_of_the_layers_outputs() -> None:
    graph = layer_of(64)
    found = removal_of(graph, damp=1e-6)
    losses = part_of(found).losses
    assert losses is not None
    x = np.concatenate([feeds["x"][0] for feeds in data(graph).feeds()]).astype(float)
    dense = graph.constants()["w"]
    for count in (3, 12, 20):
        off = np.square(x @ (found.without(count)["w"] - dense)).sum()
        # The search is in float32.
        assert losses[count - 1] == pytest.approx(off, rel=1e-3)


def test_losses_are_not_known_where_rows_differ_or_nothing_is_refitted() -> None:
    graph = layer_of(64)
    assert part_of(removal_of(graph, rows="global")).losses is None
    assert part_of(removal_of(graph, refit=False)).losses is None


def test_by_magnitude_all_rows_are_probed() -> None:
    graph = layer_of(256)
    (layer,) = linear_layers(graph)
    found = removal_of(graph, magnitudes={layer.name: layer.matrix()})
    assert found.part is None
    assert (found.without(12)["w"] == 0).sum() == 256 * 12
