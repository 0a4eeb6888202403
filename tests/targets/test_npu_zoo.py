"""Real models on edge-npu: what share of them the device runs, and what pruning saves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.targets.npu.commands import sparse_convolutions
from tilewright.tools.compile_model import compile_model
from tilewright.tools.job import Job

MISSING = "the extra [npu] is not installed"
pytest.importorskip("tosa_reference_model", reason=MISSING)
pytest.importorskip("ethosu", reason=MISSING)

CLEAN = "fold-constants,fold-batchnorm,remove-identities"
# Which weights go changes no cycle, so the fastest way to choose them will do.
QUICK = "criterion=magnitude,refit=false,smallest=512,ends=true"


def compiled(model: str, folder: Path, pipeline: str | None = None) -> Any:
    job = Job(
        f"zoo:{model}", "edge-npu", pipeline=pipeline, output=folder / "art.tw", evaluate=False
    )
    return compile_model(job)


def layers(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "art.tw" / "vela.json").read_text())
    return [row for region in content["regions"] for row in region["layers"]]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("ppocr-cls", marks=pytest.mark.zoo),
        pytest.param("efficientnet-lite0", marks=pytest.mark.devices),
    ],
)
def test_the_device_runs_all_multiplications_of_convolutional_networks(
    model: str, tmp_path: Path
) -> None:
    manifest = compiled(model, tmp_path)
    assert manifest["details"]["regions"] == "1"
    assert manifest["details"]["macs_on_npu"] == "100.0%"
    assert manifest["answers"]["agreement"] > 0.97


@pytest.mark.devices
def test_the_device_runs_all_multiplications_of_a_transformer(tmp_path: Path) -> None:
    manifest = compiled("minilm", tmp_path)
    assert manifest["details"]["macs_on_npu"] == "100.0%"
    on_cpu = {note["reason"].partition(":")[0] for note in manifest["islands"]}
    assert "LayerNormalization" in " ".join(on_cpu)


@pytest.mark.devices
def test_pruning_saves_cycles_where_the_device_can(tmp_path: Path) -> None:
    """Channels more than halve the cycles of all; 2:4 saves a third where it applies.

    Depthwise convolutions, and layers that wait for memory or their outputs, bound the rest.
    """
    pipelines = {
        "dense": CLEAN,
        "pattern": f"{CLEAN},prune-tiles{{tile=2:4,{QUICK}}}",
        "channels": f"{CLEAN},prune-channels{{sparsity=0.5,{QUICK}}}",
    }
    cycles, rows = {}, {}
    for name, pipeline in pipelines.items():
        (tmp_path / name).mkdir()
        manifest = compiled("efficientnet-lite0", tmp_path / name, pipeline)
        cycles[name] = manifest["estimated_cycles"]["value"]
        rows[name] = {row["unit"]: row for row in layers(tmp_path / name)}
    stored = np.load(tmp_path / "pattern" / "art.tw" / "region_1_vela.npz")
    sparse = [unit for unit, row in rows["pattern"].items() if row["sparse"]]
    assert sparse_convolutions(stored["commands"].tobytes()) >= len(sparse) > 25
    busy = [sum(rows[n][unit]["npu_cycles"] for unit in sparse) for n in ("dense", "pattern")]
    assert busy[0] > 1.5 * busy[1]
    assert cycles["dense"] > 1.05 * cycles["pattern"]
    assert cycles["dense"] > 2 * cycles["channels"]
