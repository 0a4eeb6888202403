"""Allocators that look into the network: rankings of channels, and blocks of a stream."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.graphs import context, three_layers
from tests.passes.test_prune_criteria import DEAD, UNSEEN, classifier, data
from tests.small_models import normal, small_graph
from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.blocks import alikeness_of, blocks_of
from tilewright.passes.prune.channels import PruneChannels
from tilewright.passes.prune.criteria import alikeness
from tilewright.passes.prune.probe import Probe
from tilewright.passes.prune.question import Question, Removal
from tilewright.passes.prune.removable import removable
from tilewright.passes.prune.take_entries import Taking
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.protocol import silent


def stream() -> Graph:
    """Return two perceptrons around which x is carried; the second adds hardly anything."""
    return small_graph(
        """g (float[1,6,8] x) => (float[1,6,8] y) {
            a = MatMul(x, up1)  r = Relu(a)  c = MatMul(r, down1)  s = Add(x, c)
            d = MatMul(s, up2)  t = Relu(d)  e = MatMul(t, down2)  y = Add(e, s)
        }""",
        up1=normal(8, 16),
        down1=normal(16, 8, seed=1),
        up2=0.01 * normal(8, 16, seed=2),
        down2=normal(16, 8, seed=3),
    )


def tokens() -> Calibration:
    x = np.random.default_rng(1).standard_normal((12, 6, 8)).astype(np.float32)
    return Calibration.from_arrays({"x": x}, stream().inputs)


def named(graph: Graph) -> dict[str, str]:
    """Return the layers' names by those of their weights."""
    return {str(layer.weight.name): layer.name for layer in linear_layers(graph)}


def test_blocks_are_what_a_stream_goes_around() -> None:
    graph = stream()
    first, second = blocks_of(graph)
    assert first[:2] == ("x", "s")
    assert second[:2] == ("s", "y")
    assert len(first.nodes) == len(second.nodes) == 3
    assert not first.nodes & second.nodes


def test_alikeness_is_the_cosine_around_the_block_of_a_layer() -> None:
    graph, names = stream(), named(stream())
    w = graph.constants()
    x = np.concatenate([feeds["x"][0] for feeds in tokens().feeds()])
    s = x + np.maximum(x @ w["up1"], 0) @ w["down1"]
    asked = [[names["down1"]], [names["down2"]], [names["up1"], names["up2"]]]
    one, other, none = alikeness_of(asked, graph, tokens())
    assert one == pytest.approx(alikeness(x, s), rel=1e-4)
    assert other is not None
    assert other > 0.99
    assert none is None


@pytest.mark.parametrize("step", [PruneChannels, PruneTiles])
def test_blocks_that_change_little_lose_more(
    step: type[PruneChannels] | type[PruneTiles],
) -> None:
    names, tiles = named(stream()), step is PruneTiles
    skip = {"skip": (names["up1"], names["up2"]), "tile": "1x1"} if tiles else {"multiple": 1}
    chosen = step(0.3, allocate="entropic", ends=True, smallest=0, **skip)
    found = chosen(stream(), context(tokens())).graph.constants()
    left = [
        (found[name] != 0).sum() if tiles else len(found[name]) for name in ("down1", "down2")
    ]
    assert left[0] > 1.5 * left[1]


def test_without_a_stream_there_are_no_blocks() -> None:
    graph = three_layers()
    x = np.random.default_rng(1).standard_normal((4, 16, 12)).astype(np.float32)
    step = PruneChannels(allocate="entropic", multiple=1, ends=True, smallest=0)
    with pytest.raises(UnusableInput, match=r"allocate=entropic .* no residual stream"):
        step(graph, context(Calibration.from_arrays({"x": x}, graph.inputs)))


def test_tolerance_takes_what_two_rankings_agree_is_worth_nothing() -> None:
    """By both the least is what nothing reads: no share of that matters."""
    step = PruneChannels(
        criterion="magnitude",
        allocate="tolerance",
        alpha=0.0,
        rankings=("magnitude", "leverage"),
        multiple=1,
        ends=True,
        smallest=0,
    )
    pruned = step(classifier(), context(data())).graph
    kept = pruned.constants()["b1"]
    assert classifier().constants()["b1"][UNSEEN] not in kept
    assert len(kept) == 4
    everything = PruneChannels(
        criterion="leverage",
        allocate="tolerance",
        alpha=1.0,
        rankings=("magnitude", "leverage"),
        multiple=1,
        ends=True,
        smallest=0,
    )
    few = everything(classifier(), context(data())).graph.constants()["b1"]
    # All that may go: a fifth of them, and no less than one, stays.
    assert len(few) == 1
    assert classifier().constants()["b1"][DEAD] not in few


def test_fair_pruners_two_scores_are_the_default() -> None:
    pytest.importorskip("torch")
    step = PruneChannels(
        allocate="tolerance",
        alpha=0.0,
        criterion="utilization",
        multiple=1,
        smallest=0,
        ends=True,
    )
    kept = step(classifier(), context(data())).graph.constants()["b1"]
    assert classifier().constants()["b1"][DEAD] not in kept


def test_tolerance_ranks_channels_not_tiles() -> None:
    with pytest.raises(UnusableInput, match="allocate is tolerance, but must be one of"):
        PruneTiles(allocate="tolerance")


@pytest.mark.parametrize(
    ("step", "options", "readers"),
    [
        (PruneTiles, {"floor": 0.9}, "floor is read by allocate=sensitivity and prioritized"),
        (PruneChannels, {"floor": 0.9, "allocate": "global"}, "with allocate=global"),
        (PruneChannels, {"alpha": 0.1}, "alpha is read by allocate=tolerance alone"),
        (PruneChannels, {"rankings": ("l2", "magnitude")}, "with allocate=uniform"),
        (PruneChannels, {"sparsity": 0.5, "allocate": "tolerance"}, "sparsity is read by"),
    ],
)
def test_an_option_that_the_allocator_does_not_read_is_refused(
    step: type[PruneChannels] | type[PruneTiles], options: dict[str, Any], readers: str
) -> None:
    with pytest.raises(UnusableInput, match=f"{readers}.*no effect"):
        step(**options)


@pytest.mark.parametrize(("option", "such"), [("alpha", 0.05), ("floor", 0.97)])
def test_a_share_that_is_none_is_refused_with_the_default_as_an_example(
    option: str, such: float
) -> None:
    with pytest.raises(UnusableInput, match=f"{option} is 2, .* from 0 to 1, such as {such}"):
        PruneChannels(**{option: 2})  # type: ignore[arg-type]


def test_an_option_at_its_default_is_no_matter_and_those_that_read_it_take_it() -> None:
    assert PruneTiles(floor=0.97).allocate == "uniform"
    assert PruneTiles(allocate="prioritized", floor=0.9).floor == 0.9
    assert PruneChannels(allocate="tolerance", alpha=0.1, floor=0.97).alpha == 0.1


@pytest.mark.parametrize("how", ["tolerance", "entropic"])
def test_both_need_examples(how: str) -> None:
    with pytest.raises(UnusableInput, match=rf"allocate={how} .* Give --calibration"):
        PruneChannels(allocate=how)(classifier(), context())


def test_shapes_alone_share_out_without_examples() -> None:
    step = PruneTiles(0.5, "magnitude", allocate="erk", tile="1x1", ends=True, smallest=0)
    found = step(three_layers(), context()).graph
    shares = [float((layer.matrix() == 0).mean()) for layer in linear_layers(found)]
    assert shares[0] > shares[1] > shares[2]


class Statistics:
    """What is known of one place's inputs, which is large."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def without(self, count: int) -> dict[str, np.ndarray]:
        kept = self.values.copy()
        kept[:count] = 0
        return {self.name: kept} if count else {}


def test_weighing_many_places_holds_the_statistics_of_few_at_once() -> None:
    graph, names = stream(), ["down1", "down2"] * 20
    alive: list[weakref.ref[Statistics]] = []
    most = 0
    places = [Place(name, 16, 14, 2, 1.0) for name in names]

    def removals() -> Iterator[Removal]:
        nonlocal most
        for place in places:
            found = Statistics(place.name, graph.constants()[place.name])
            alive.append(weakref.ref(found))
            most = max(most, sum(each() is not None for each in alive))
            yield Removal(place, found.without)

    question = Question(places, removals, graph, tokens(), 0.5, 0.9, silent)
    removed = [0] * 38 + [4, 10]
    down1, down2 = (graph.constants()[name].copy() for name in ("down1", "down2"))
    down1[:4] = down2[:10] = 0
    expected = Probe(graph, tokens()).error_with({"down1": down1, "down2": down2})
    assert question.error(removed) == expected
    assert most <= 2


@pytest.mark.parametrize("refit", [True, False])
def test_what_two_places_take_from_one_layer_is_gone_at_once(refit: bool) -> None:
    """The features of both branches are joined, and the last layer alone reads them."""
    graph = small_graph(
        """g (float[1,6,8] x) => (float[1,6,5] y) {
            a = MatMul(x, left)  b = Relu(a)  c = MatMul(x, right)  d = Relu(c)
            e = Concat <axis = 2> (b, d)  y = MatMul(e, out)
        }""",
        left=normal(8, 6),
        right=normal(8, 4, seed=1),
        out=normal(10, 5, seed=2),
    )
    couplings = Couplings(graph)
    cuts = removable(graph, couplings, ends=True, smallest=0, skip=()).cuts
    sizes = [cut.dimension.size for cut in cuts]
    assert sorted(sizes) == [4, 6]
    assert [cut.names for cut in cuts] == [named(graph)["out"]] * 2
    places = {
        cut.dimension: Place(cut.names, size, size - 1, 1, 1.0, layers=(cut.names,))
        for cut, size in zip(cuts, sizes, strict=True)
    }
    orders = {cut.dimension: np.arange(cut.dimension.size) for cut in cuts}
    taking = Taking(graph, orders, refit, damp=1e-9, seed=0)
    question = Question(
        list(places.values()),
        lambda: taking.removals(cuts, places, tokens()),
        graph,
        tokens(),
        0.5,
        0.9,
        silent,
    )

    weights = graph.constants()
    x = np.concatenate([feeds["x"][0] for feeds in tokens().feeds()])
    hidden = np.concatenate(
        [np.maximum(x @ weights[name], 0) for name in ("left", "right")], axis=1
    )

    def left(removed: dict[int, int]) -> np.ndarray:
        """Return the last weights without the first so many of the 6 and of the 4 features."""
        alive = np.ones(10, dtype=bool)
        alive[: removed[6]] = alive[6 : 6 + removed[4]] = False
        out = np.where(alive[:, None], weights["out"], 0)
        if refit:
            out[alive] = np.linalg.lstsq(hidden[:, alive], hidden @ weights["out"])[0]
        return out

    for removed in ([2, 3], [3, 0], [1, 1], [0, 2]):
        expected = question.probe.error_with(
            {"out": left(dict(zip(sizes, removed, strict=True)))}
        )
        # Float32 weights, and the little damping.
        assert question.error(removed) == pytest.approx(expected, rel=1e-4)
