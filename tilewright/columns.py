"""Columns: a layer's input as the matrix X of Y = W X, (inputs, positions)."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.padding import pads_of


def position_count(node: gs.Node, x: np.ndarray) -> int:
    """Count the columns of X that a layer's input `x` holds."""
    if node.op != "Conv":
        return int(np.prod(x.shape[:-1], dtype=np.int64))
    return int(x.shape[0] * np.prod(_geometry(node, x)[0], dtype=np.int64))


def columns(node: gs.Node, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return X at the `chosen` positions, (inputs, len(chosen)).

    For a Conv, X is im2col of `x`: rows are (channel, taps), as in its weights, for one group.
    """
    if node.op != "Conv":
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1])[chosen].T)
    sizes, kernel, strides, dilations, pads = _geometry(node, x)
    spatial = tuple(range(2, x.ndim))
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=spatial)
    steps = [slice(None, (n - 1) * s + 1, s) for n, s in zip(sizes, strides, strict=True)]
    taps = [slice(None, None, d) for d in dilations]
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    # (batch, positions..., channels, taps...), so that one index picks a whole column.
    ahead = np.moveaxis(windows, 1, x.ndim - 1)
    picked = ahead[np.unravel_index(chosen, (x.shape[0], *sizes))]
    return np.ascontiguousarray(picked.reshape(len(chosen), -1).T)


def results(node: gs.Node, y: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return what is like a layer's output `y` at the `chosen` positions, (outputs, chosen)."""
    features_last = np.moveaxis(y, 1, -1) if node.op == "Conv" else y
    return np.ascontiguousarray(features_last.reshape(-1, features_last.shape[-1])[chosen].T)


def real_positions(feeds: Mapping[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Say which of one sample's positions are no padding. Result: bool, `shape`.

    Where the model has an integer or boolean input whose name holds "mask", and which has this
    shape, they are those that it does not have at zero; else all.
    """
    for name, values in feeds.items():
        is_mask = "mask" in name.lower() and values.dtype.kind in "biu"
        if is_mask and values.shape == tuple(shape) and values.any():
            return np.asarray(values != 0)
    return np.ones(tuple(shape), dtype=bool)


def choose_positions(
    node: gs.Node,
    x: np.ndarray,
    feeds: Mapping[str, np.ndarray],
    limit: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Pick at most `limit` positions of one sample, sorted.

    Padding does not count (`real_positions`).
    """
    candidates = np.arange(position_count(node, x))
    if node.op != "Conv" and x.ndim > 2:
        candidates = np.flatnonzero(real_positions(feeds, x.shape[:-1]))
    if len(candidates) <= limit:
        return candidates
    return np.sort(rng.choice(candidates, limit, replace=False))


def _geometry(
    node: gs.Node, x: np.ndarray
) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, int]]]:
    """Return output sizes, kernel, strides, dilations and (before, after) pads, per axis."""
    kernel = [int(k) for k in node.inputs[1].shape[2:]]
    axes = len(kernel)
    strides = [int(s) for s in node.attrs.get("strides") or [1] * axes]
    dilations = [int(d) for d in node.attrs.get("dilations") or [1] * axes]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = pads_of(node, x.shape[2:], extents)
    sizes = [
        (int(size) + before + after - e) // s + 1
        for size, (before, after), s, e in zip(x.shape[2:], pads, strides, extents, strict=True)
    ]
    return sizes, kernel, strides, dilations, pads
