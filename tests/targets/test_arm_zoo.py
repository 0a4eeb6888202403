"""Real models through the arm-edge backend, in QEMU."""

from pathlib import Path

import pytest

from tests.targets.boards import emulated
from tests.targets.zoo_models import SMALL_AND_OTHERS
from tilewright.frontends import zoo
from tilewright.tools.api import compile
from tilewright.tools.load_artifact import load

pytestmark = emulated


@pytest.mark.parametrize("name", SMALL_AND_OTHERS)
def test_a_model_agrees_with_the_original_and_answers_twice_the_same(
    name: str, tmp_path: Path
) -> None:
    artifact = tmp_path / "a.tw"
    found = compile(
        f"zoo:{name}", "arm-edge", sparsity=0, device="qemu", estimate=False, output=artifact
    )
    assert found["verified"]["against"] == ["model.onnx", "the original"]
    assert found["verified"]["max_rel_error"] <= 1e-3
    run = load(artifact, device="qemu")
    (feeds,) = zoo.calibration(name, 1)
    first, second = run(feeds), run(feeds)
    assert [v.tobytes() for v in first.values()] == [v.tobytes() for v in second.values()]


@pytest.mark.devices
def test_sparse_tiles_take_fewer_cycles_of_a_whole_model(tmp_path: Path) -> None:
    clean = "fold-constants,fold-batchnorm,remove-identities"
    pruned = f"{clean},prune-tiles{{sparsity=0.6,criterion=magnitude,refit=false}}"
    cycles = []
    for pipeline in (clean, pruned):
        found = compile(
            "zoo:efficientnet-lite0",
            "arm-edge-a72",
            pipeline=pipeline,
            device="qemu",
            output=tmp_path / "a.tw",
        )
        assert found["estimated_cycles"] is not None
        cycles.append(found["estimated_cycles"]["value"])
    # Depthwise convolutions, the first layer and the last one stay as they are.
    assert cycles[0] > 1.3 * cycles[1]
