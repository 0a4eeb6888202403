"""The README's commands for Arm boards, as programs, on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.small_models import normal, small_model
from tests.targets.boards import emulated, server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    text = """g (float[batch,64] x) => (float[batch,8] y) {
        a = MatMul(x, u) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = MatMul(s, v)
    }"""
    model = small_model(text, u=normal(64, 64), w=normal(64, 64), v=normal(64, 8))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=normal(32, 64))
    return tmp_path


def run(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "from tilewright.tools.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


@emulated
def test_compile_run_and_verify_for_a_board(place: Path) -> None:
    options = ("--calibration", "inputs.npz", "--dim", "batch=1", "--json")
    done = run(
        place, "compile", "model.onnx", "--target", "arm-edge", "--sparsity", "0.6", *options
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["device"], manifest["latency"]) == ("qemu", None)
    assert manifest["sparsity"]["tiled"] > 0
    assert manifest["verified"]["max_rel_error"] < 1e-3
    artifact = ("model.arm-edge.tw", "--data", "inputs.npz", "--device", "qemu")
    done = run(place, "run", *artifact, "--json")
    assert json.loads(done.stdout)["outputs"]["y"]["shape"] == [32, 8]
    done = run(place, "verify", "model.arm-edge.tw/model.onnx", *artifact)
    assert (done.returncode, "agree" in done.stdout) == (0, True)
    done = run(place, "bench", "model.arm-edge.tw")
    assert done.returncode == 2


@emulated
def test_a_board_is_timed_and_a_board_that_is_not_there_leaves_nothing(place: Path) -> None:
    options = ("--calibration", "inputs.npz", "--dim", "batch=1", "--json")
    command = ("compile", "model.onnx", "--target", "arm-edge", "--no-estimate", *options)
    with server("--key", "pi5") as (_, port):
        device = f"rpc://127.0.0.1:{port}/pi5"
        done = run(place, *command, "--device", device)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["estimated_cycles"] is None
        latency = json.loads(done.stdout)["latency"]
        assert latency["device"].startswith(f"{device}, ")  # and as many threads as there are
        assert 0 < latency["min_ms"] <= latency["median_ms"]
    done = run(place, *command, "--device", device, "-o", "other.tw")
    assert (done.returncode, f"Device {device}" in done.stderr) == (2, True)
    assert not (place / "other.tw").exists()
