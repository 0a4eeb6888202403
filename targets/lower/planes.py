"""Operators that work on planes, and how a window moves over one."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.padding import pads_of
from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.planes import PadKernel, PlaneShape
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.kernels.windows import PlaneKernel
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.quantized import lowered_layer
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import Window


def lower_depthwise(lowering: Lowering, region: Region) -> None:
    """Lower a depthwise convolution, plane by plane."""
    layer = lowered_layer(region.anchor)
    if layer is None:
        raise NotLowered("Conv whose weights are known only at run time")
    weight = lowering.program.constant(f"{layer.name}.taps", layer.weight.values)
    _lower_planes(lowering, region, "conv", weight, layer.weight.shape[0] // layer.groups)


def lower_pool(lowering: Lowering, region: Region) -> None:
    """Lower MaxPool and AveragePool."""
    node = region.anchor
    if len([t for t in node.outputs if t.name]) > 1:
        raise NotLowered(f"{node.op} with indices")
    plane = plane_shape(node)
    if plane is not None and node.attrs.get("ceil_mode", 0) and _beyond(plane):
        raise NotLowered(f"{node.op} with a window that starts behind the input")
    op = "max" if node.op == "MaxPool" else "average"
    _lower_planes(lowering, region, op, None, 1)


def pad_planes(
    lowering: Lowering, name: str, window: Window, shape: PlaneShape, edge: float = 0
) -> tuple[Window, np.ndarray]:
    """Copy (images, channels, rows, columns) into planes that are padded with `edge`.

    Returns the planes as (images, channels, elements) and the offset of each
    (channel, row of the window, column of the window).
    """
    images, channels = window.shape[:2]
    planes = lowering.program.tensor(
        f"{name}.padded", (images, channels, shape.elements), window.dtype
    )
    source = image_strides(window)
    target = (planes.strides[0], planes.strides[1])
    kernel = PadKernel(images, channels, shape, source, target, window.dtype, edge)
    lowering.program.call(kernel, [window, planes], [name])
    taps = [shape.tap(y, x) for y in range(shape.kernel[0]) for x in range(shape.kernel[1])]
    offsets = np.add.outer(np.arange(channels) * shape.elements, np.asarray(taps))
    return planes, offsets.reshape(-1).astype(np.int32)


def image_strides(window: Window) -> Strides:
    """Return the strides of (images, channels, columns), or with rows before the columns."""
    s = window.strides
    return Strides(s[0], s[1], s[2] if len(s) == 4 else 0, s[-1])


def plane_shape(node: gs.Node) -> PlaneShape | None:
    """Return how a node's window moves over its planes, or None where it takes each place once.

    Raises NotLowered for other than one or two spatial axes.
    """
    shape, out = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    assert shape is not None
    assert out is not None
    rank = len(shape) - 2
    if rank not in (1, 2):
        raise NotLowered(f"{node.op} over {rank} spatial axes")
    if node.op == "Conv":
        kernel = list(node.inputs[1].shape[2:])
    else:
        kernel = list(node.attrs["kernel_shape"])
    stride = list(node.attrs.get("strides", [1] * rank))
    dilation = list(node.attrs.get("dilations", [1] * rank))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before = [pads[0] for pads in pads_of(node, shape[2:], extents)]
    one_place = all(k == 1 and s == 1 for k, s in zip(kernel, stride, strict=True))
    if one_place and not any(before) and shape[2:] == out[2:]:
        return None
    lead = [1] * (2 - rank)
    return PlaneShape(
        height=shape[2] if rank == 2 else 1,
        width=shape[-1],
        top=before[0] if rank == 2 else 0,
        left=before[-1],
        out_height=out[2] if rank == 2 else 1,
        out_width=out[-1],
        kernel=_pair(lead + kernel),
        stride=_pair(lead + stride),
        dilation=_pair(lead + dilation),
    )


def _lower_planes(
    lowering: Lowering, region: Region, op: str, weight: Window | None, multiplier: int
) -> None:
    node = region.anchor
    window = lowering.window(node.inputs[0])
    plane = plane_shape(node)
    out = static_shape(node.outputs[0])
    assert out is not None
    if plane is None:
        raise NotLowered(f"{node.op} with a window of one place")
    bias = None
    if op == "conv" and len(node.inputs) > 2 and node.inputs[2].name:
        own = lowering.window(node.inputs[2])
        strides = tuple(own.strides[0] if a == 1 else 0 for a in range(len(out)))
        bias = Window(own.buffer, out, strides, own.offset)
    counts = _window_counts(node, plane) if op == "average" else None
    chain, operands, outputs = lowering.chain_of(
        region, node.outputs[0], tuple(range(len(out))), len(out) - 2, bias
    )
    fixed = [w for w in (weight,) if w is not None]
    if counts is not None:
        fixed.append(lowering.program.constant(f"{node.name}.shares", counts))
    windows = [*operands, *outputs]
    kernel = PlaneKernel(
        op=op,
        images=out[0],
        channels=out[1],
        shape=plane,
        source=image_strides(window),
        tail=Tail.of(
            chain,
            len(operands),
            [image_strides(w) for w in windows],
            [w.dtype for w in windows],
        ),
        counted=counts is not None,
        multiplier=multiplier,
    )
    lowering.program.call(
        kernel,
        [*fixed, *operands, *outputs, window],
        [n.name for n in region.nodes],
    )


def _beyond(plane: PlaneShape) -> bool:
    """Say whether the last window starts in the padding behind: such windows do not count.

    Some versions of shape inference count them all the same.
    """
    ends = (plane.height + plane.top, plane.width + plane.left)
    starts = (
        (out - 1) * stride
        for out, stride in zip((plane.out_height, plane.out_width), plane.stride, strict=True)
    )
    return any(start >= end for start, end in zip(starts, ends, strict=True))


def _window_counts(node: gs.Node, plane: PlaneShape) -> np.ndarray | None:
    """Return 1 / (inputs under each window), or None where every window is full."""
    if node.attrs.get("count_include_pad", 0) and not node.attrs.get("ceil_mode", 0):
        return None
    axes = []
    spans = list(zip(plane.kernel, plane.stride, plane.dilation, strict=True))
    for extent, before, out, kernel, stride, dilation in (
        (plane.height, plane.top, plane.out_height, *spans[0]),
        (plane.width, plane.left, plane.out_width, *spans[1]),
    ):
        starts = np.arange(out)[:, None] * stride - before
        places = starts + np.arange(kernel)[None, :] * dilation
        axes.append(((places >= 0) & (places < extent)).sum(axis=1))
    counts = np.outer(axes[0], axes[1])
    if not counts.all():
        raise NotLowered("AveragePool with a window that holds padding only")
    if (counts == plane.kernel[0] * plane.kernel[1]).all():
        return None
    if node.attrs.get("count_include_pad", 0):
        raise NotLowered("AveragePool that counts padding in ceil mode")
    return (1.0 / counts).astype(np.float32)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
