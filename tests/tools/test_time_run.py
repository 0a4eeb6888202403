"""A run of the gate, in real processes."""

from pathlib import Path

import pytest

from tests.small_models import normal, open_batch, two_layers
from tilewright.errors import UnusableInput
from tilewright.protocol import silent
from tilewright.tools.time_run import Duel


def test_a_run_is_the_ratio_of_two_models_that_were_timed(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    said: list[str] = []
    duel = Duel(model, model, "onnxruntime", {"x": normal(1, 8)}, 1, said.append)
    assert duel.run(0) > 0
    assert said == ["m.onnx: run 1 against onnxruntime"]


def test_a_model_that_does_not_take_the_inputs_is_named(tmp_path: Path) -> None:
    now, before = two_layers(tmp_path / "now.onnx"), open_batch(tmp_path / "before.onnx")
    duel = Duel(now, before, "onnxruntime", {"x": normal(1, 8), "z": normal(1)}, 1, silent)
    with pytest.raises(UnusableInput, match=r"now\.onnx: onnxruntime cannot run these inputs"):
        duel.run(0)
    duel = Duel(now, tmp_path / "none.onnx", "onnxruntime", {"x": normal(1, 8)}, 1, silent)
    with pytest.raises(UnusableInput, match=r"before, .*none\.onnx: .* does not exist"):
        duel.run(0)
