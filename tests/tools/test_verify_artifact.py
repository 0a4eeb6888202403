"""How far an artifact's answers may be from its model's: as far as rounding moves them."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.compare import AllValues, compare, shaken
from tilewright.errors import CheckFailed
from tilewright.graph import Graph
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Context, Feeds
from tilewright.tools import verify_artifact as module
from tilewright.tools.load_artifact import load_standard
from tilewright.tools.verify_artifact import AGREES, allowed_error, verify_artifact

X = normal(64, 24)
LAYERS = 6
SLACK = 1e-2  # for some of so few values to fall on the other side


def network() -> Graph:
    lines = [f"h{i} = MatMul(r{i}, w{i})  r{i + 1} = Relu(h{i})" for i in range(LAYERS)]
    text = (
        f"g (float[1,24] r0) => (float[1,24] y) {{ {' '.join(lines)} y = Softmax(r{LAYERS}) }}"
    )
    return small_graph(text, **{f"w{i}": normal(24, 24, seed=i) / 2 for i in range(LAYERS)})


def saved(graph: Graph, folder: Path) -> Path:
    graph.save(folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def feeds() -> list[Feeds]:
    return [{"r0": x[None]} for x in X]


@pytest.fixture
def rounding(tmp_path: Path) -> Path:
    data = Calibration.from_arrays({"r0": X}, network().inputs)
    return saved(Quantize()(network(), Context(DEVICE, data)).graph, tmp_path)


def test_a_model_in_floats_is_held_to_its_largest_value(
    tmp_path: Path, feeds: list[Feeds]
) -> None:
    path = saved(network(), tmp_path)
    assert allowed_error(path, feeds, SLACK) == AGREES
    model = oracle.session(path)

    def off(feed: Feeds) -> dict[str, np.ndarray]:
        y = oracle.outputs_of(model, feed)["y"]
        return {"y": y + 2e-3 * np.abs(y).max()}

    with pytest.raises(CheckFailed, match=r'output "y" differs by .*; 1\.0e-03 of the largest'):
        verify_artifact({"model.onnx": path}, off, feeds, AGREES)


def test_a_model_that_rounds_is_held_to_three_times_what_rounding_moves(
    rounding: Path, feeds: list[Feeds], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = oracle.session(rounding)
    moved = oracle.session(shaken(Graph.from_onnx(onnx.load(rounding)), SLACK))
    (away,) = compare(
        (oracle.outputs_of(model, feed), oracle.outputs_of(moved, feed)) for feed in feeds
    )
    # Some sums of some sample fall on the other side, else this test says nothing.
    assert away.rms_rel_error > 1e-3
    assert allowed_error(rounding, feeds, SLACK) == AllValues({"y": 3 * away.rms_rel_error})
    monkeypatch.setattr(module, "_MOST_SHAKEN", 2e-3)
    assert allowed_error(rounding, feeds, SLACK) == AllValues({"y": 2e-3})


def test_where_shaking_moves_no_value_of_the_samples_it_is_harder(
    rounding: Path, feeds: list[Feeds], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = feeds[:1]
    model, graph = oracle.session(rounding), Graph.from_onnx(onnx.load(rounding))

    def moved_by(slack: float) -> float:
        copy = oracle.session(shaken(graph, slack))
        pairs = [(oracle.outputs_of(model, f), oracle.outputs_of(copy, f)) for f in one]
        (away,) = compare(pairs)
        return away.rms_rel_error

    least = next(s for s in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2) if moved_by(s))
    assert least > 1e-6  # else this test says nothing
    allowed = allowed_error(rounding, one, 1e-6)
    assert isinstance(allowed, AllValues)
    assert allowed.most["y"] == pytest.approx(max(3 * moved_by(least), 1e-3))
    # What nothing moves may be off by as much as sums in another order, not more.
    monkeypatch.setattr(module, "_MOST_SLACK", least / 2)
    assert allowed_error(rounding, one, 1e-6) == AllValues({"y": 1e-3})


def test_one_value_may_be_another_where_a_model_rounds_but_not_all(
    rounding: Path, feeds: list[Feeds]
) -> None:
    allowed = allowed_error(rounding, feeds, SLACK)
    model = oracle.session(rounding)

    def one_value_off(feed: Feeds) -> dict[str, np.ndarray]:
        y = oracle.outputs_of(model, feed)["y"].copy()
        if feed is feeds[0]:
            y[0, 0] += 0.01
        return {"y": y}

    found = verify_artifact({"model.onnx": rounding}, one_value_off, feeds, allowed)
    assert found["rms_rel_error"] < 0.2 * found["max_rel_error"]
    assert found["max_rel_error"] > AGREES.most

    def in_another_order(feed: Feeds) -> dict[str, np.ndarray]:
        return {"y": oracle.outputs_of(model, feed)["y"][:, ::-1]}

    with pytest.raises(CheckFailed, match=r"of all values by root mean square is allowed"):
        verify_artifact({"model.onnx": rounding}, in_another_order, feeds, allowed)


def test_files_are_verified_against_as_the_standard_says(
    rounding: Path, feeds: list[Feeds]
) -> None:
    standard, found = oracle.session(rounding), load_standard(str(rounding))
    for feed in feeds:
        np.testing.assert_array_equal(found(feed)["y"], oracle.outputs_of(standard, feed)["y"])
