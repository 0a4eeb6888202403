"""What operators that move a window over images do, in torch."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch.nn import functional

from tilewright.autograd_reading import NotCovered, Step, Tensor
from tilewright.graph import is_constant, static_shape
from tilewright.padding import pads_of


def conv(node: gs.Node) -> Step:
    """Run Conv, over one to three axes. Raises NotCovered else."""
    axes = len(node.inputs[1].shape) - 2
    window = _Window(node, axes, list(node.inputs[1].shape[2:]))
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]
    groups = int(node.attrs.get("group", 1))

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Sequence[Tensor]:
        pads = window.pads(x)
        # Padding of its own would copy the input.
        even = pads[::2] == pads[1::2]
        x = x if even else functional.pad(x, pads)
        around = pads[::-2] if even else 0
        return (function(x, w, b, window.strides, around, window.dilations, groups),)

    return run


def conv_transpose(node: gs.Node) -> Step:
    """Run ConvTranspose, over one or two axes, evenly padded. Raises NotCovered else."""
    axes = len(node.inputs[1].shape) - 2
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or node.attrs.get("output_shape"):
        raise NotCovered("automatic padding is not covered")
    pads = [int(p) for p in node.attrs.get("pads") or [0] * (2 * axes)]
    if pads[:axes] != pads[axes:]:
        raise NotCovered("its padding differs before and after")
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}.get(axes)
    if function is None:
        raise NotCovered(f"it has {axes} spatial axes")
    strides, extra, dilations = (
        [int(v) for v in node.attrs.get(name) or [default] * axes]
        for name, default in (("strides", 1), ("output_padding", 0), ("dilations", 1))
    )
    groups = int(node.attrs.get("group", 1))

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Sequence[Tensor]:
        return (function(x, w, b, strides, pads[:axes], extra, groups, dilations),)

    return run


class _Window:
    """Strides, dilations and padding of a convolution or a pool."""

    def __init__(self, node: gs.Node, axes: int, kernel: Sequence[int]) -> None:
        self.strides = [int(s) for s in node.attrs.get("strides") or [1] * axes]
        self.dilations = [int(d) for d in node.attrs.get("dilations") or [1] * axes]
        self._extents = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        self._node = node

    def pads(self, x: Tensor) -> list[int]:
        """Return the padding of an input as torch has it: pairs, last axis first."""
        pads = pads_of(self._node, x.shape[-len(self.strides) :], self._extents)
        return [p for pair in reversed(pads) for p in pair]


def max_pool(node: gs.Node) -> Step:
    """Run MaxPool, over one or two axes. Raises NotCovered else."""
    window, kernel, function = _pool(node, functional.max_pool1d, functional.max_pool2d)
    if len(node.outputs) > 1:
        raise NotCovered("it says where the largest were")

    def run(x: Tensor) -> Sequence[Tensor]:
        padded = functional.pad(x, window.pads(x), value=-math.inf)
        return (function(padded, kernel, window.strides, 0, window.dilations),)

    return run


def average_pool(node: gs.Node) -> Step:
    """Run AveragePool, over one or two axes. Raises NotCovered else."""
    window, kernel, function = _pool(node, functional.avg_pool1d, functional.avg_pool2d)
    if any(d != 1 for d in window.dilations):
        raise NotCovered("dilated averages are not covered")
    with_padding = bool(node.attrs.get("count_include_pad", 0))

    def run(x: Tensor) -> Sequence[Tensor]:
        pads = window.pads(x)
        mean = function(functional.pad(x, pads), kernel, window.strides)
        if with_padding or not any(pads):
            return (mean,)
        inside = function(functional.pad(torch.ones_like(x), pads), kernel, window.strides)
        return (mean / inside,)

    return run


def _pool(
    node: gs.Node, one: Callable[..., Tensor], two: Callable[..., Tensor]
) -> tuple[_Window, list[int], Callable[..., Tensor]]:
    kernel = [int(k) for k in node.attrs["kernel_shape"]]
    if len(kernel) > 2 or node.attrs.get("ceil_mode", 0):
        raise NotCovered("only pools over one or two axes, without ceil_mode, are covered")
    return _Window(node, len(kernel), kernel), kernel, one if len(kernel) == 1 else two


def resize(node: gs.Node) -> Step:
    """Run Resize of images, where torch does it as ONNX does. Raises NotCovered else."""
    sizes = node.outputs[0].shape
    mode = node.attrs.get("mode", "nearest")
    where = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
    before = static_shape(node.inputs[0])
    if static_shape(node.outputs[0]) is None or before is None or len(before) != 4:
        raise NotCovered("only images of known sizes are covered")
    if list(before[:2]) != list(sizes[:2]) or node.attrs.get("antialias", 0):
        raise NotCovered("only height and width may change, without antialias")
    if (
        node.attrs.get("axes")
        or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise NotCovered("only sizes of all axes are covered")
    if not _whole(node, before, sizes):
        raise NotCovered("its scales do not make whole sizes")
    if where == "pytorch_half_pixel" and 1 in sizes[2:]:
        raise NotCovered('"pytorch_half_pixel" to size 1 is not covered')
    spatial = [int(n) for n in sizes[2:]]
    if mode == "nearest" and where == "asymmetric" and rounding == "floor":
        return lambda x, *_: (functional.interpolate(x, spatial, mode="nearest"),)
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        aligned = where == "align_corners"
        return lambda x, *_: (
            functional.interpolate(x, spatial, mode="bilinear", align_corners=aligned),
        )
    raise NotCovered(f'mode "{mode}" with "{where}" and "{rounding}" is not covered')


def _whole(node: gs.Node, before: Sequence[int], after: Sequence[int]) -> bool:
    """Say whether the scales, if there are some, are just the ratios of the sizes."""
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None or not scales.name:
        return True
    if not is_constant(scales):
        return False
    ratios = np.divide(after, before)
    return not scales.values.size or bool(np.allclose(scales.values, ratios, rtol=1e-6))
