"""Padding: what a convolution or a pool adds around its input."""

from collections.abc import Sequence

import onnx_graphsurgeon as gs


def pads_of(
    node: gs.Node, sizes: Sequence[int], extents: Sequence[int]
) -> list[tuple[int, int]]:
    """Return what `pads` and `auto_pad` put before and behind each spatial axis.

    `sizes` are those of the input, `extents` those of a dilated window. With SAME the output
    has a position for each begun stride of the input; of an odd number SAME_UPPER puts the
    larger half behind.
    """
    axes = len(extents)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        given = node.attrs.get("pads") if auto != "VALID" else None
        flat = [int(pad) for pad in given or [0] * (2 * axes)]
        return list(zip(flat[:axes], flat[axes:], strict=True))
    found = []
    strides = node.attrs.get("strides") or [1] * axes
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found
