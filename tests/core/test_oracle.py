import numpy as np
import pytest

from tests.graphs import three_layers
from tests.small_models import normal, small_graph, small_model
from tilewright import graph as graph_module
from tilewright import oracle
from tilewright.errors import UnusableInput


def test_a_run_gives_every_output_by_name() -> None:
    g = small_graph("g (float[2] x) => (float[2] n, float[2] a) { n = Neg(x)  a = Abs(x) }")
    found = oracle.run(g, {"x": np.array([1, -2], np.float32)})
    assert {name: values.tolist() for name, values in found.items()} == {
        "n": [-1, 2],
        "a": [1, 2],
    }


def test_models_near_the_limit_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"x": normal(1, 16, 12)}
    expected = oracle.run(three_layers(), feeds)["y"]
    monkeypatch.setattr(oracle, "_MESSAGE_BYTES", 1)
    monkeypatch.setattr(graph_module, "_PROTOBUF_BYTES", 1)
    monkeypatch.setattr(graph_module, "EXTERNAL_BYTES", 100)
    for model in (three_layers(), three_layers().to_onnx()):
        assert (oracle.run(model, feeds)["y"] == expected).all()


def test_a_model_that_onnxruntime_refuses_is_named() -> None:
    model = small_model("g (float[2] x) => (float[2] y) { y = Nonsense(x) }")
    with pytest.raises(UnusableInput, match=r"onnxruntime cannot load the model: .*Nonsense"):
        oracle.session(model)


def test_feeds_that_do_not_fit_are_named() -> None:
    with pytest.raises(UnusableInput, match=r"cannot run the model on x \(1, 2, 3\)"):
        oracle.run(three_layers(), {"x": np.ones((1, 2, 3), np.float32)})
