"""Resize of images: the nearest pixel, or between four."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import tosa_serializer as ts

from tilewright.targets.npu.lower import (
    Lowering,
    Value,
    activation,
    constant_of,
    root_of,
    shape_of,
)
from tilewright.targets.npu.operands import Refused
from tilewright.targets.npu.tosa import INT8, INT32, Scale
from tilewright.targets.npu.units import Unit

_IMAGE = (0, 2, 3, 1)
_ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


class Places(NamedTuple):
    """Where one axis is read: result y at (y times `by` plus `offset`) over `over`."""

    over: int
    by: int
    offset: int


def resizing(lowering: Lowering, unit: Unit) -> Value:
    """Resize of height and width, where TOSA reads the pixels that ONNX does."""
    source, attrs = activation(unit), root_of(unit).attrs
    before, shape = shape_of(source), shape_of(unit.out)
    _check(unit, before, shape)
    mode = str(attrs.get("mode", "nearest"))
    axes = list(zip(before[2:], shape[2:], strict=True))
    rule = _nearest if mode == "nearest" else _between
    places = [rule(attrs, *sizes) for sizes in axes]
    scales = [number for p in places for number in (p.over, p.by)]
    borders = [
        (after - 1) * p.by - (size - 1) * p.over + p.offset
        for p, (size, after) in zip(places, axes, strict=True)
    ]
    writer = lowering.writer
    image = lowering.arranged(lowering.value(source), _IMAGE)
    lists = (scales, [p.offset for p in places], borders)
    inputs = [image, *map(writer.sizes, lists)]
    stored = (shape[0], *shape[2:], shape[1])
    if mode == "nearest":
        small = writer.op("Resize", inputs, stored, INT8, ts.ResizeMode.NEAREST)
    else:
        sums = writer.op("Resize", inputs, stored, INT32, ts.ResizeMode.BILINEAR)
        small = writer.rescale(sums, Scale.of(1 / (places[0].over * places[1].over)), INT8)
    return Value(lowering.like_result(unit, small, source), _IMAGE)


def _check(unit: Unit, before: Sequence[int], shape: Sequence[int]) -> None:
    """Raise Refused for what is no plain Resize of height and width."""
    attrs = root_of(unit).attrs
    mode = str(attrs.get("mode", "nearest"))
    if len(shape) != 4 or tuple(shape[:2]) != tuple(before[:2]):
        raise Refused("it resizes more than height and width")
    if mode not in ("nearest", "linear"):
        raise Refused(f"it resizes by mode {mode}")
    policy = str(attrs.get("keep_aspect_ratio_policy", "stretch"))
    if attrs.get("antialias") or "axes" in attrs or policy != "stretch":
        raise Refused("it resizes with antialias, axes or an aspect ratio that is kept")
    scales = constant_of(unit, 2)
    if scales is None or not scales.size:
        if constant_of(unit, 3) is None:
            raise Refused("its scales are given as before opset 11, or not at all")
        return
    # ONNX reads by the scales as given, TOSA by what the sizes make of them.
    if not np.array_equal(scales, (np.array(shape) / np.array(before)).astype(np.float32)):
        raise Refused(f"its scales {scales.tolist()} do not fill its sizes {list(shape)}")


def _between(attrs: Mapping[str, Any], before: int, after: int) -> Places:
    """Return where a smooth Resize reads: places outside are those at the border."""
    how = str(attrs.get("coordinate_transformation_mode", "half_pixel"))
    if how == "half_pixel" or (how == "pytorch_half_pixel" and after > 1):
        return _half_pixels(before, after)
    if how == "asymmetric":
        return _corners(Fraction(after, before))
    if how == "align_corners" and min(before, after) > 1:
        return _corners(Fraction(after - 1, before - 1))
    raise Refused(f"it resizes {before} to {after} in the mode {how}")


def _nearest(attrs: Mapping[str, Any], before: int, after: int) -> Places:
    """Return what makes TOSA take the pixels that ONNX takes; there may be nothing."""
    how = str(attrs.get("coordinate_transformation_mode", "half_pixel"))
    ties = str(attrs.get("nearest_mode", "round_prefer_floor"))
    wanted = np.clip(_ROUNDED[ties](_asked(how, before, after)), 0, before - 1)
    choices = [_half_pixels(before, after), _corners(Fraction(after, before))]
    if min(before, after) > 1:
        choices.append(_corners(Fraction(after - 1, before - 1)))
    for places in choices:
        doubled = 2 * (np.arange(after) * places.by + places.offset) + places.over
        if np.array_equal(np.clip(doubled // (2 * places.over), 0, before - 1), wanted):
            return places
    raise Refused(f"it resizes {before} to {after} in the mode {how}, {ties}")


def _asked(how: str, before: int, after: int) -> np.ndarray:
    """Return the places that ONNX reads, in float32 as onnxruntime counts them."""
    y = np.arange(after, dtype=np.float32)
    scale, half = np.float32(after / before), np.float32(0.5)
    if how == "half_pixel" or (how == "pytorch_half_pixel" and after > 1):
        return (y + half) / scale - half
    if how == "asymmetric":
        return y / scale
    if how == "align_corners" and after > 1:
        return y * np.float32(before - 1) / np.float32(after - 1)
    raise Refused(f"it resizes {before} to {after} in the mode {how}")


def _half_pixels(before: int, after: int) -> Places:
    """(y + 1/2) / ratio - 1/2: the middles of pixels lie on each other."""
    ratio = Fraction(after, before)
    return Places(
        ratio.numerator * 2, ratio.denominator * 2, ratio.denominator - ratio.numerator
    )


def _corners(ratio: Fraction) -> Places:
    """Y / ratio: the first pixels lie on each other."""
    return Places(ratio.numerator * 2, ratio.denominator * 2, 0)
