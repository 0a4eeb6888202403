"""Resize, by tables of source places and their shares."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.targets.kernels.lookup import ResizeKernel
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.regions import Region

# Coordinates are float32, so the middle between two pixels may come out a little off.
# onnxruntime takes for the middle what is so near, since its issue 28291.
_TIE = 1e-6


def lower_resize(lowering: Lowering, region: Region) -> None:
    """Lower Resize of the last two axes: nearest or linear."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    shape = static_shape(node.outputs[0])
    assert shape is not None
    mode = node.attrs.get("mode", "nearest")
    rank = len(shape)
    same = rank >= 3 and shape[: rank - 2] == window.shape[: rank - 2]
    if mode not in ("nearest", "linear") or not same or node.attrs.get("antialias", 0):
        raise NotLowered(f"Resize {mode} of these axes")
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotLowered("Resize that keeps the aspect ratio")
    scales = _scales(node, window.shape, shape)
    # Opset 10 had one way only.
    old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "simple"}
    attrs = node.attrs if lowering.graph.opset > 10 else {**node.attrs, **old}
    tables = [
        resize_table(attrs, scales[a], window.shape[a], shape[a]) for a in (rank - 2, rank - 1)
    ]
    target = lowering.program.tensor(node.outputs[0].name, shape, "float32")
    name = node.name
    constants = [
        lowering.program.constant(f"{name}.rows", tables[0][0]),
        lowering.program.constant(f"{name}.columns", tables[1][0]),
        lowering.program.constant(f"{name}.row_shares", tables[0][1]),
        lowering.program.constant(f"{name}.column_shares", tables[1][1]),
    ]
    kernel = ResizeKernel(
        planes=shape[:-2],
        out_height=shape[-2],
        out_width=shape[-1],
        taps=tables[0][0].shape[1],
        source=window.strides,
        target=target.strides,
    )
    lowering.program.call(kernel, [window, target, *constants], [name])
    lowering.define(node.outputs[0], target)


def _scales(
    node: gs.Node, shape: tuple[int, ...], out: tuple[int, ...]
) -> dict[int, np.float32]:
    """Return each axis's scale, in float32: which pixel is nearest hangs on the last bit."""
    scales = {a: np.float32(o / n) for a, (n, o) in enumerate(zip(shape, out, strict=True))}
    # Opset 10 has the scales second, later ones third, behind the region of interest.
    index = 1 if len(node.inputs) == 2 else 2
    tensor = node.inputs[index] if len(node.inputs) > index else None
    if tensor is not None and is_constant(tensor) and tensor.values.size:
        axes = node.attrs.get("axes", range(len(shape)))
        for axis, scale in zip(axes, tensor.values, strict=True):
            scales[axis % len(shape)] = np.float32(scale)
    return scales


def resize_table(
    attrs: Mapping[str, Any], scale: np.float32, extent: int, out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return source places (out, taps) and their shares, as the ONNX Resize formulas say.

    Raises NotLowered for a coordinate transformation mode that is not known here.
    """
    how = attrs.get("coordinate_transformation_mode", "half_pixel")
    x = np.arange(out, dtype=np.float32)
    if how == "asymmetric":
        at = x / scale
    elif how == "align_corners":
        at = x * np.float32(extent - 1) / np.float32(max(out - 1, 1))
    elif how == "half_pixel" or (how == "pytorch_half_pixel" and out > 1):
        at = (x + np.float32(0.5)) / scale - np.float32(0.5)
    elif how == "pytorch_half_pixel":
        at = np.zeros(out)
    else:
        raise NotLowered(f"Resize with {how}")
    if attrs.get("mode", "nearest") == "nearest":
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "floor": np.floor,
            "ceil": np.ceil,
            "round_prefer_floor": lambda v: np.ceil(v - 0.5 - _TIE),
            "round_prefer_ceil": lambda v: np.floor(v + 0.5 + _TIE),
            # onnxruntime's reading of opset 10, which does not say.
            "simple": np.ceil if scale < 1 else np.floor,
        }
        rounding = ways[attrs.get("nearest_mode", "round_prefer_floor")]
        # In float64, for among float32 places from 16 on the tie is less than half a step.
        at = at.astype(np.float64)
        places = np.clip(rounding(at), 0, extent - 1).astype(np.int32)
        return places[:, None], np.ones((out, 1), np.float32)
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    places = np.stack([low, low + 1], axis=1)
    shares = np.stack([1 - share, share], axis=1)
    return np.clip(places, 0, extent - 1).astype(np.int32), shares
