"""The main job on real models, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.zoo


def compile_zoo(folder: Path, name: str, *options: str) -> dict[str, Any]:
    program = "from tilewright.tools.cli import compile_main; compile_main()"
    command = [sys.executable, "-c", program, f"zoo:{name}", "--target", "cpu", "--json"]
    ended = subprocess.run(
        [*command, *options], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == 0
    found: dict[str, Any] = json.loads(ended.stdout)
    assert (folder / found["artifact"] / "manifest.json").is_file()
    return found


# The others, and larger ones at 0.6, are compiled by tests/benchmarks/zoo.py.
@pytest.mark.parametrize("name", ["ppocr-rec", "ppocr-det", "ppocr-cls", "efficientnet-lite0"])
def test_a_dense_artifact_agrees_with_the_original(tmp_path: Path, name: str) -> None:
    found = compile_zoo(tmp_path, name, "--sparsity", "0", "--no-eval")
    assert found["verified"]["against"] == ["model.onnx", "the original"]
    assert found["verified"]["max_rel_error"] <= 1e-3


@pytest.mark.parametrize("name", ["efficientnet-lite0", "ppocr-cls"])
def test_a_sparse_artifact_agrees_with_its_own_model(tmp_path: Path, name: str) -> None:
    found = compile_zoo(tmp_path, name, "--sparsity", "0.6", "--no-eval")
    assert found["verified"]["max_rel_error"] <= 1e-3


def test_sparse_ocr_still_reads(tmp_path: Path) -> None:
    found = compile_zoo(tmp_path, "ppocr-rec", "--sparsity", "0.6")
    (score,) = found["accuracy"]
    assert score["task"] == "ocr-exact"
    assert score["dense"] > 0.95
    assert score["value"] > 0.5


def test_sparse_sentences_keep_their_meaning(tmp_path: Path) -> None:
    found = compile_zoo(tmp_path, "minilm", "--sparsity", "0.6")
    (score,) = found["accuracy"]
    # The dense model reaches 0.67; tiles pruned by magnitude alone reach 0.09.
    assert score["value"] >= 0.61


def test_ocr_on_integers_reads_as_well(tmp_path: Path) -> None:
    found = compile_zoo(tmp_path, "ppocr-rec", "--precision", "int8")
    (score,) = found["accuracy"]
    # Three lines of 300: what a change of rounding may move.
    assert score["value"] >= score["dense"] - 0.01
    assert sum(layer["bits"] == 8 for layer in found["layers"]) > 40
