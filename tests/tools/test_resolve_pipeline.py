"""What --sparsity and --precision become on a target that has a pattern and no floats."""

import pytest

from tilewright.errors import UnusableInput
from tilewright.tools.find_target import find_target
from tilewright.tools.resolve_pipeline import check_precision, resolve_pipeline

CLEAN = "fold-constants,fold-batchnorm,remove-identities"
INT8 = "quantize{everywhere=true}"
QUANTIZE = f"cluster-weights,{INT8}"
CHANNELS = "prune-channels{{sparsity={},ends=true,smallest=512}}"
PATTERN = "prune-tiles{tile=2:4,ends=true,smallest=512}"


@pytest.mark.parametrize(
    ("sparsity", "passes"),
    [
        (None, [CLEAN, INT8]),
        (0.0, [CLEAN, INT8]),
        (0.25, [CLEAN, CHANNELS.format(0.25), QUANTIZE]),
        (0.5, [CLEAN, PATTERN, QUANTIZE]),
        # Half of the weights of 4 in 5 channels are 0.4 of all.
        (0.6, [CLEAN, CHANNELS.format(0.2), PATTERN, QUANTIZE]),
        (0.75, [CLEAN, CHANNELS.format(0.5), PATTERN, QUANTIZE]),
    ],
)
def test_a_pattern_takes_its_share_of_the_sparsity_and_channels_the_rest(
    sparsity: float | None, passes: list[str]
) -> None:
    found = resolve_pipeline(find_target("edge-npu"), None, sparsity, None, "int8")
    assert str(found) == ",".join(passes)


def test_a_device_without_the_pattern_loses_channels_alone() -> None:
    found = resolve_pipeline(find_target("edge-npu-u55-128"), None, 0.6, None, "int8")
    assert str(found) == ",".join([CLEAN, CHANNELS.format(0.6), QUANTIZE])


def test_the_precision_is_the_targets_own_where_none_is_asked_for() -> None:
    assert check_precision(find_target("edge-npu"), None) == "int8"
    assert check_precision(find_target("cpu"), None) == "fp32"
    assert check_precision(find_target("cpu"), "w8") == "w8"


def test_a_precision_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(
        UnusableInput, match=r"--precision fp32: .*no kernels for it. It has int8"
    ):
        check_precision(find_target("edge-npu"), "fp32")


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("cluster-weights,prune-tiles", "prune-tiles fits weights anew"),
        ("prune-tiles,cluster-weights,heal", "heal fits weights anew"),
        ("prune-tiles,quantize,cluster-weights", "quantize leaves none of"),
    ],
)
def test_clusters_that_would_not_last_or_not_be_are_refused(pipeline: str, said: str) -> None:
    with pytest.raises(UnusableInput, match=said):
        resolve_pipeline(find_target("cpu"), pipeline, 0.6, None)
