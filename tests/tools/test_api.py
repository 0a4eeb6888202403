from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright
from tests.small_models import normal, small_graph
from tests.tools.conftest import made_up_times, write_target
from tests.tools.fake_backends import BACKENDS
from tilewright import oracle
from tilewright.frontends.onnx_file import read_onnx
from tilewright.tools import compile_model

TEXT = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"


def test_a_graph_is_compiled_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    graph = small_graph(TEXT, w=normal(8, 4))
    said: list[str] = []
    manifest = tilewright.compile(
        graph, write_target(tmp_path), output=tmp_path / "m.tw", report=said.append
    )
    assert manifest["artifact"] == str(tmp_path / "m.tw")
    assert said[0] == "pipeline: no passes"
    feeds = {"x": normal(1, 8, seed=1)}
    found = tilewright.load(tmp_path / "m.tw")(feeds)
    np.testing.assert_array_equal(found["y"], oracle.run(graph, feeds)["y"])


def test_calibration_data_are_a_file_or_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    graph, x = small_graph(TEXT, w=normal(8, 4)), normal(16, 8)
    np.savez(tmp_path / "inputs.npz", x=x)
    target, pipeline = write_target(tmp_path), "prune-tiles{sparsity=0.5,ends=true,smallest=1}"
    answers = []
    kinds: tuple[str | dict[str, np.ndarray], ...] = ({"x": x}, str(tmp_path / "inputs.npz"))
    for index, given in enumerate(kinds):
        manifest = tilewright.compile(
            graph,
            target,
            pipeline=pipeline,
            calibration=given,
            output=tmp_path / f"{index}.tw",
        )
        answers.append(manifest["answers"])
    assert answers[0] == answers[1]
    assert answers[0]["samples"] == 16
    with pytest.raises(tilewright.TilewrightError, match='no array for input "x"'):
        tilewright.compile(graph, target, calibration={"y": x}, output=tmp_path / "no.tw")


def test_a_tampered_artifact_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    graph = small_graph(TEXT, w=normal(8, 4))
    tilewright.compile(graph, write_target(tmp_path), output=tmp_path / "m.tw")
    (tmp_path / "m.tw" / "weights.bin").write_bytes(b"")
    with pytest.raises(tilewright.TilewrightError, match=r'"weights.bin" has 0 bytes'):
        tilewright.load(tmp_path / "m.tw")


def test_an_artifact_on_integers_has_pruned_tiles_of_its_own_and_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    text = """g (float[1,40,24] x) => (float[1,40,8] y) {
        a = MatMul(x, u) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = MatMul(s, v)
    }"""
    graph = small_graph(text, u=normal(24, 64), w=normal(64, 96), v=normal(96, 8))
    np.savez(tmp_path / "inputs.npz", x=normal(64, 40, 24))
    manifest = tilewright.compile(
        graph,
        sparsity=0.5,
        precision="int8",
        calibration=tmp_path / "inputs.npz",
        output=tmp_path / "m.tw",
    )
    assert manifest["pipeline"].endswith(",quantize")
    assert [layer["bits"] for layer in manifest["layers"]] == [8, 8, 8]
    assert manifest["plan"]["levels"] == {"MatMul_2": {"sparsity": 0.5, "tile": "32x1"}}
    feeds = {"x": normal(1, 40, 24, seed=9)}
    found = tilewright.load(tmp_path / "m.tw")(feeds)["y"]
    expected = oracle.run(read_onnx(tmp_path / "m.tw" / "model.onnx"), feeds)["y"]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": "0.5"}, "sparsity is '0.5'; give a number"),
        ({"dims": {"batch": "1"}}, "The size of batch is .1.; give a whole number"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 on"),
        ({"threads": 0}, "threads is 0; give a whole number from 1 on"),
    ],
)
def test_options_that_make_no_sense_are_one_message(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(tilewright.TilewrightError, match=message):
        tilewright.compile(tmp_path / "m.onnx", **options)


def test_an_artifact_takes_at_least_one_thread(tmp_path: Path) -> None:
    with pytest.raises(tilewright.TilewrightError, match="threads is -2"):
        tilewright.load(tmp_path, threads=-2)


def test_a_model_in_memory_and_a_parsed_pipeline_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    model = small_graph(TEXT, w=normal(8, 4)).to_onnx()
    pipeline = tilewright.parse_pipeline("fold-constants")
    manifest = tilewright.compile(
        model, write_target(tmp_path), output=tmp_path / "m.tw", pipeline=pipeline
    )
    assert manifest["pipeline"] == "fold-constants"
