"""What --sparsity and --precision become on a target that has a pattern and no floats."""

import pytest

from tilewright.errors import UnusableInput
from tilewright.tools.find_target import find_target
from tilewright.tools.resolve_pipeline import check_precision, resolve_pipeline

CLEAN = "fold-constants,fold-batchnorm,remove-identities"
QUANTIZE = "cluster-weights,quantize{everywhere=true}"
CHANNELS = "prune-channels{{sparsity={},ends=true,smallest=512}}"
PATTERN = "prune-tiles{tile=2:4,ends=true,smallest=512}"


@pytest.mark.parametrize(
    ("sparsity", "passes"),
    [
        (None, [CLEAN, QUANTIZE]),
        (0.0, [CLEAN, QUANTIZE]),
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


def test_what_pruning_would_undo_is_refused_in_front_of_it() -> None:
    with pytest.raises(UnusableInput, match=r"cluster-weights rounds what pruning leaves"):
        resolve_pipeline(find_target("cpu"), "cluster-weights,prune-tiles", 0.6, None)
