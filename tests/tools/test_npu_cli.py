"""The commands on an artifact for edge-npu."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.small_models import normal, small_model
from tilewright.tools import cli

MISSING = "the extra [npu] is not installed"
pytest.importorskip("tosa_reference_model", reason=MISSING)
pytest.importorskip("ethosu", reason=MISSING)

Run = Callable[..., tuple[int, str, str]]
NETWORK = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    a = Conv<kernel_shape=[1,1]>(x, w1) b = Relu(a) c = Conv<kernel_shape=[1,1]>(b, w2)
    d = Relu(c) e = Add(d, b) f = Relu(e) y = Conv<kernel_shape=[1,1]>(f, w3)
}"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs `tilewright`, in a folder with a model and inputs for it."""
    monkeypatch.chdir(tmp_path)
    model = small_model(
        NETWORK,
        w1=normal(64, 16, 1, 1) / 4,
        w2=normal(64, 64, 1, 1, seed=1) / 8,
        w3=normal(16, 64, 1, 1, seed=2),
    )
    onnx.save(model, "model.onnx")
    np.savez("inputs.npz", x=normal(16, 16, 8, 8))

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        out, err = capfd.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, out, err

    return call


def compiled(run: Run, *options: str) -> Any:
    """Compile with --json, as which nothing else may be on stdout."""
    words = ("compile", "model.onnx", "--target", "edge-npu", "--calibration", "inputs.npz")
    code, out, err = run(*words, *options, "--json")
    assert code == 0, err
    return json.loads(out)


def test_compile_quantizes_by_itself_estimates_and_measures_nothing(run: Run) -> None:
    manifest = compiled(run)
    assert manifest["precision"] == "int8"
    assert manifest["pipeline"].endswith("quantize{everywhere=true}")
    assert manifest["device"] == "tosa-reference"
    assert manifest["latency"] is None
    assert manifest["estimated_cycles"]["value"] > 0
    assert manifest["estimated_cycles"]["model"].startswith("Vela 5.2.0, ethos-u85-256")
    assert manifest["details"]["macs_on_npu"] == "100.0%"
    assert {layer["bits"] for layer in manifest["layers"]} == {8}
    assert [note["node"] for note in manifest["islands"]] == [
        "x/quantize",
        "y/float/dequantize",
    ]


def test_half_of_the_weights_go_by_the_pattern_that_the_commands_switch_on(run: Run) -> None:
    manifest = compiled(run, "--sparsity", "0.5")
    assert "prune-tiles{tile=2:4" in manifest["pipeline"]
    tiles = {layer["name"]: layer["tile"] for layer in manifest["layers"]}
    assert list(tiles.values()).count("2:4") >= 1
    assert int(manifest["details"]["convolutions_in_2_4_mode"]) >= 1


def test_the_plan_of_an_artifact_prunes_the_same_again(run: Run) -> None:
    first = compiled(run, "--sparsity", "0.6", "-o", "first.tw")
    again = compiled(run, "--plan", "first.tw/plan.json", "-o", "again.tw")
    assert again["plan"] == first["plan"]
    assert again["estimated_cycles"] == first["estimated_cycles"]


def test_an_artifact_runs_and_is_verified(run: Run) -> None:
    compiled(run, "-o", "art.tw")
    code, out, err = run("run", "art.tw", "--data", "inputs.npz", "-o", "outputs.npz", "--json")
    assert code == 0, err
    assert json.loads(out)["outputs"]["y"]["shape"] == [16, 16, 8, 8]
    assert np.load("outputs.npz")["y"].shape == (16, 16, 8, 8)
    code, out, err = run(
        "run", "art.tw", "--data", "inputs.npz", "--device", "tosa-reference", "--json"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "fp32"), "has no kernels for it. It has int8"),
        (("--device", "rpc://board:9090"), "run in Arm's reference model"),
        (("--tune", "quick"), "--tune measures on the device"),
    ],
)
def test_what_cannot_be_had_is_one_message_and_nothing_is_written(
    words: tuple[str, ...], said: str, run: Run
) -> None:
    command = ("compile", "model.onnx", "--target", "edge-npu", "--calibration", "inputs.npz")
    code, _, err = run(*command, *words)
    assert code == 2
    assert said in " ".join(err.split())
    assert not Path("model.edge-npu.tw").exists()


def test_bench_and_search_say_that_nothing_is_timed_there(run: Run) -> None:
    compiled(run)
    code, _, err = run("bench", "model.edge-npu.tw", "--against", "onnxruntime")
    assert code == 2
    assert 'it runs on "tosa-reference"' in " ".join(err.split())
    words = ("search", "model.onnx", "--target", "edge-npu", "--calibration", "inputs.npz")
    code, _, err = run(*words, "--accuracy-floor", "0.9")
    assert code == 2, err
