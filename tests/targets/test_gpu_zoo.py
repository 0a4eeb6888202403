"""Real models through the gpu backend: compiled for a GPU, checked through OpenCL."""

import json
from pathlib import Path

import pytest

from tests.targets.gpu_builds import needs_compiler, needs_opencl
from tests.targets.zoo_models import SMALL_AND_OTHERS
from tilewright.tools.api import compile

pytestmark = [needs_compiler, needs_opencl]


@pytest.mark.parametrize("name", SMALL_AND_OTHERS)
def test_a_dense_artifact_agrees_with_the_original_and_spills_nothing(
    tmp_path: Path, name: str
) -> None:
    found = compile(
        f"zoo:{name}", target="gpu", sparsity=0, device="opencl", output=tmp_path / "a.tw"
    )
    assert found["verified"]["against"] == ["model.onnx", "the original"]
    assert found["verified"]["max_rel_error"] <= 1e-3
    rows = json.loads((tmp_path / "a.tw" / "kernels.json").read_text())
    assert {row["kernel"]: row["spilled_bytes"] for row in rows if row["spilled_bytes"]} == {}


@pytest.mark.devices
# Where few columns are left to skip, dense blocks are as fast.
@pytest.mark.parametrize(("name", "least"), [("ppocr-cls", 1), ("efficientnet-lite0", 20)])
def test_a_sparse_artifact_runs_in_tiles_and_agrees_with_its_own_model(
    tmp_path: Path, name: str, least: int
) -> None:
    found = compile(
        f"zoo:{name}", target="gpu", sparsity=0.6, device="opencl", output=tmp_path / "a.tw"
    )
    assert found["verified"]["max_rel_error"] <= 1e-3
    kernels = {layer["name"]: layer["kernel"].split()[0] for layer in found["layers"]}
    assert sum(kernels[layer] == "sparse" for layer in found["pruned"]) >= least
