"""The command line for a target whose device is not there: small models, through OpenCL."""

from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal, small_model
from tests.targets.gpu_builds import needs_opencl, with_empty_tiles
from tests.tools.conftest import Cli
from tilewright.measurement import Samples
from tilewright.targets import BACKENDS
from tilewright.targets.cuda import driver
from tilewright.targets.cuda.executor import GpuProgram
from tilewright.targets.cuda.opencl import OpenClMachine
from tilewright.targets.gpu import GpuBackend

pytestmark = needs_opencl


@pytest.fixture
def gpu_cli(run: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return the command line with the real backends, in a folder with a model."""
    import onnx

    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    text = "g (float[2,64] x) => (float[2,64] y) { a = MatMul(x, w)  y = Relu(a) }"
    weights = with_empty_tiles(normal(64, 64), 0.5).T.copy()
    onnx.save(small_model(text, w=weights), "model.onnx")
    return run


def test_compiling_without_the_device_estimates_and_says_by_what_model(gpu_cli: Cli) -> None:
    ended = gpu_cli("compile", "model.onnx", "--target", "gpu", "--device", "opencl")
    assert ended.code == 0, ended.err
    assert "estimated cycles" in ended.out
    assert "model: roofline of sm_90" in ended.out
    assert "latency" not in ended.out
    assert "bench" not in ended.out
    assert "outputs agree with model.onnx and the original" in ended.out
    report = Path("model.gpu.tw/report.html").read_text(encoding="utf-8")
    assert "occupancy" in report or "no CUDA compiler" in report


def test_a_latency_on_a_gpu_bears_its_name_and_no_threads(
    gpu_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuBackend, "find_device", lambda *_: "cuda")
    monkeypatch.setattr(driver, "find_gpu", lambda: driver.Gpu("H100", (9, 0)))
    monkeypatch.setattr(
        GpuBackend, "load", lambda _, folder, *__: GpuProgram(folder, OpenClMachine)
    )
    timed = Samples((500_000,), "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(GpuBackend, "timer", lambda *_: lambda: timed)
    ended = gpu_cli("compile", "model.onnx", "--target", "gpu", "--json")
    assert ended.code == 0, ended.err
    latency = ended.json()["latency"]
    assert (latency["device"], latency["median_ms"]) == ("NVIDIA H100 80GB HBM3", 0.5)
    assert "threads" not in latency
    report = Path("model.gpu.tw/report.html").read_text(encoding="utf-8")
    assert "<td>on NVIDIA H100 80GB HBM3</td>" in report


def test_an_artifact_runs_and_is_verified_but_is_not_timed_beside_engines(gpu_cli: Cli) -> None:
    gpu_cli("compile", "model.onnx", "--target", "gpu", "--device", "opencl")
    np.savez("d.npz", x=normal(3 * 2, 64).reshape(3, 2, 64))
    ended = gpu_cli("verify", "model.gpu.tw", "model.onnx", "--data", "d.npz", "--json")
    assert (ended.code, ended.json()["agree"]) == (0, True)
    ended = gpu_cli("bench", "model.gpu.tw")
    assert ended.code == 2
    assert 'bench model.gpu.tw: it runs on "opencl"' in ended.err


def test_what_needs_another_device_is_refused_and_nothing_is_written(
    gpu_cli: Cli,
) -> None:
    ended = gpu_cli("compile", "model.onnx", "--target", "gpu", "--device", "host")
    assert ended.code == 2
    assert "--device host: artifacts for gpu run on cuda or opencl" in ended.err
    ended = gpu_cli("compile", "model.onnx", "--target", "gpu", "--tune", "quick")
    assert ended.code == 2
    assert "chosen by a model of the device" in ended.err
    assert not Path("model.gpu.tw").exists()
