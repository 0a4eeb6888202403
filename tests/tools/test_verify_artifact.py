"""How far an artifact's answers may be from its model's: as far as rounding moves them."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import CheckFailed
from tilewright.graph import Graph
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Context, Feeds
from tilewright.tools.verify_artifact import AGREES, allowed_error, verify_artifact

X = normal(64, 24)


def network() -> Graph:
    text = (
        "g (float[1,24] x) => (float[1,8] y) { a = MatMul(x, v) h = Relu(a) y = MatMul(h, w) }"
    )
    return small_graph(text, v=normal(24, 32), w=normal(32, 8, seed=1))


def saved(graph: Graph, folder: Path) -> Path:
    graph.save(folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": x[None]} for x in X[:16]]


@pytest.fixture
def rounding(tmp_path: Path) -> Path:
    data = Calibration.from_arrays({"x": X}, network().inputs)
    return saved(Quantize()(network(), Context(DEVICE, data)).graph, tmp_path)


def test_a_model_in_floats_is_held_to_its_largest_value(
    tmp_path: Path, feeds: list[dict[str, np.ndarray]]
) -> None:
    path = saved(network(), tmp_path)
    assert allowed_error(path, feeds) == AGREES
    model = oracle.session(path)

    def off(feed: Feeds) -> dict[str, np.ndarray]:
        return {
            n: v + 2e-3 * np.abs(v).max() for n, v in oracle.outputs_of(model, feed).items()
        }

    with pytest.raises(CheckFailed, match=r'output "y" differs by .*1\.0e-03 of the largest'):
        verify_artifact({"model.onnx": path}, off, feeds, AGREES)


def test_a_model_that_rounds_is_held_to_what_rounding_moves_of_all_its_values(
    rounding: Path, feeds: list[dict[str, np.ndarray]]
) -> None:
    allowed = allowed_error(rounding, feeds)
    assert allowed.max_rel_error == math.inf
    # Steps of 1/255 of a range, of which few fall on the other side.
    assert 1e-3 <= allowed.rms_rel_error < 0.05
    model = oracle.session(rounding)

    def one_value_off(feed: Feeds) -> dict[str, np.ndarray]:
        y = oracle.outputs_of(model, feed)["y"].copy()
        y[0, 0] += 1e-3 * np.abs(y).max()
        return {"y": y}

    found = verify_artifact({"model.onnx": rounding}, one_value_off, feeds, allowed)
    assert 0 < found["rms_rel_error"] < found["max_rel_error"] == pytest.approx(1e-3, rel=0.01)

    def in_another_order(feed: Feeds) -> dict[str, np.ndarray]:
        return {"y": oracle.outputs_of(model, feed)["y"][:, ::-1]}

    with pytest.raises(CheckFailed, match=r"of all values, by root mean square, is allowed"):
        verify_artifact({"model.onnx": rounding}, in_another_order, feeds, allowed)
