"""Resize on the device: the pixels are those of onnxruntime, or it is left to the CPU."""

from itertools import product

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.npu_units import between, found_and_expected, on_device
from tilewright.graph import Graph

NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
WHERE = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
SHAPE = "1,4,6,10"


def resized(attributes: str, scale: float, opset: int = 17) -> Graph:
    scales = np.array([1, 1, scale, scale], np.float32)
    return between(f"r = Resize<{attributes}>(f, , scales)", SHAPE, opset, scales=scales)


def off_by(graph: Graph) -> int | None:
    """Return the largest difference in steps, or None where the device does not take it."""
    units, notes = on_device(graph)
    if not units:
        assert any(note.reason.startswith("Resize: ") for note in notes)
        return None
    ((found, expected),) = found_and_expected(graph, units, 3 * normal(1, 4, 6, 10))
    return int(np.abs(found - expected).max())


@pytest.mark.parametrize(("where", "ties"), list(product(WHERE, NEAREST)))
def test_the_nearest_pixel_is_the_one_that_onnx_takes(where: str, ties: str) -> None:
    given = f'mode="nearest", coordinate_transformation_mode="{where}", nearest_mode="{ties}"'
    for scale in (2, 3, 1.5, 0.5):
        assert off_by(resized(given, scale)) in (0, None), scale


@pytest.mark.parametrize("where", WHERE)
def test_pixels_between_others_are_within_a_step(where: str) -> None:
    given = f'mode="linear", coordinate_transformation_mode="{where}"'
    for scale in (2, 3, 1.5, 0.5):
        # Floats just beside a half are rounded to the other side, no more.
        assert off_by(resized(given, scale)) in (0, 1, None), scale


@pytest.mark.parametrize(
    ("given", "scale"),
    [
        ('"nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"', 2),
        ('"nearest", coordinate_transformation_mode="half_pixel"', 2),
        ('"linear", coordinate_transformation_mode="half_pixel"', 2),
        ('"linear", coordinate_transformation_mode="align_corners"', 2),
    ],
)
def test_the_usual_ones_run_on_the_device(given: str, scale: float) -> None:
    assert off_by(resized(f"mode={given}", scale)) is not None


@pytest.mark.parametrize(
    ("given", "scale", "opset", "said"),
    [
        ('mode="linear"', 1.25, 17, "do not fill its sizes [1, 4, 7, 12]"),
        ('mode="linear", antialias=1', 0.5, 18, "antialias"),
        ('mode="cubic"', 2, 17, "it resizes by mode cubic"),
        (
            'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"',
            3,
            17,
            "it resizes 6 to 18 in the mode asymmetric, ceil",
        ),
    ],
)
def test_what_tosa_has_not_is_left_to_the_cpu(
    given: str, scale: float, opset: int, said: str
) -> None:
    units, notes = on_device(resized(given, scale, opset))
    assert not units
    assert any(said in note.reason for note in notes), notes


def test_a_single_pixel_of_pytorch_is_left_to_the_cpu() -> None:
    graph = between(
        'r = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">'
        "(f, , , sizes)",
        SHAPE,
        sizes=np.array([1, 4, 1, 1]),
    )
    units, notes = on_device(graph)
    assert not units
    said = "Resize: it resizes 6 to 1 in the mode pytorch_half_pixel"
    assert said in {note.reason for note in notes}
