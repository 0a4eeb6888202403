"""Shape operators as windows: nothing moves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.targets.lower.window import Window


def view(node: gs.Node, window: Window) -> list[Window] | None:
    """Return the windows of a shape node's outputs, or None where elements would move."""
    return VIEWS[node.op](node, window)


def _reshape(node: gs.Node, window: Window) -> list[Window] | None:
    shape = static_shape(node.outputs[0])
    shown = None if shape is None else window.reshaped(shape)
    return None if shown is None else [shown]


def _transpose(node: gs.Node, window: Window) -> list[Window] | None:
    perm = node.attrs.get("perm", list(reversed(range(len(window.shape)))))
    return [window.transposed(perm)]


def _slice(node: gs.Node, window: Window) -> list[Window] | None:
    if "starts" in node.attrs:  # opset 9 and before
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        rest = node.inputs[1:]
        if not all(is_constant(t) or not t.name for t in rest):
            return None
        values: list[Any] = [t.values.tolist() if t.name else None for t in rest] + [None, None]
        starts, ends = values[0], values[1]
        axes = values[2] if values[2] is not None else list(range(len(starts)))
        steps = values[3] if values[3] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = window.shape[axis]
        chosen = range(extent)[slice(*_bounds(start, end, step, extent))]
        window = window.sliced(axis, chosen.start, len(chosen), chosen.step)
    return [window]


def _bounds(start: int, end: int, step: int, extent: int) -> tuple[int, int | None, int]:
    """Return what Python's slices call the same: they differ where one walks down."""
    if step > 0:
        return start, end, step
    # A start before the first entry means that entry; an end before it includes it.
    return max(start, -extent), None if end < -extent else end, step


def _split(node: gs.Node, window: Window) -> list[Window] | None:
    axis = int(node.attrs.get("axis", 0)) % len(window.shape)
    windows, start = [], 0
    for tensor in node.outputs:
        shape = static_shape(tensor)
        if shape is None:
            return None
        windows.append(window.sliced(axis, start, shape[axis]))
        start += shape[axis]
    return windows


def _expand(node: gs.Node, window: Window) -> list[Window] | None:
    shape = static_shape(node.outputs[0])
    return None if shape is None else [window.broadcast(shape)]


def _gather(node: gs.Node, window: Window) -> list[Window] | None:
    """Gather by one known index is a slice; evenly spaced ones are, too."""
    if not is_constant(node.inputs[1]):
        return None
    axis = int(node.attrs.get("axis", 0)) % len(window.shape)
    indices = node.inputs[1].values
    places = np.where(indices < 0, indices + window.shape[axis], indices).reshape(-1)
    steps = set(np.diff(places).tolist()) or {1}
    shape = static_shape(node.outputs[0])
    if len(steps) != 1 or shape is None or indices.ndim > 1:
        return None
    chosen = window.sliced(axis, int(places[0]), len(places), steps.pop())
    shown = chosen.reshaped(shape) if indices.ndim == 0 else chosen
    return None if shown is None else [shown]


def _dropout(node: gs.Node, window: Window) -> list[Window] | None:
    """Dropout is nothing outside training; its mask and training itself are left to others."""
    training = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if training and not (is_constant(node.inputs[2]) and not node.inputs[2].values.any()):
        return None
    return [window] if len(node.outputs) == 1 or not node.outputs[1].name else None


VIEWS: dict[str, Callable[[gs.Node, Window], list[Window] | None]] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Identity": lambda node, window: [window],
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Gather": _gather,
}
