"""Resize, by tables of source places and their shares."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.targets.kernels.lookup import ResizeKernel
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.regions import Region


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
    tables = [_resize_table(node, a, window.shape[a], shape[a]) for a in (rank - 2, rank - 1)]
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


def _resize_table(
    node: gs.Node, axis: int, extent: int, out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return source places (out, taps) and their shares, as the ONNX Resize formulas say."""
    how = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    # In float32, as onnxruntime does: which pixel is nearest hangs on the last bit.
    scale = np.float32(out / extent)
    if scales is not None and scales.name and is_constant(scales) and scales.values.size:
        scale = np.float32(scales.values[axis])
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
    if node.attrs.get("mode", "nearest") == "nearest":
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "floor": np.floor,
            "ceil": np.ceil,
            "round_prefer_floor": lambda v: np.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        }
        rounding = ways[node.attrs.get("nearest_mode", "round_prefer_floor")]
        places = np.clip(rounding(at), 0, extent - 1).astype(np.int32)
        return places[:, None], np.ones((out, 1), np.float32)
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    places = np.stack([low, low + 1], axis=1)
    shares = np.stack([1 - share, share], axis=1)
    return np.clip(places, 0, extent - 1).astype(np.int32), shares
