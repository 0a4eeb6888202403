"""What ONNX operators do, in torch: each rule reads a node and returns what runs it."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch.nn import functional

from tilewright.errors import UnusableInput
from tilewright.graph import is_constant, static_shape

Tensor = torch.Tensor
# Takes a node's inputs, None for those left out, and returns its outputs.
Step = Callable[..., Sequence[Tensor]]


class _NotCovered(Exception):
    """A node does something that has no translation; the reason is for the user."""


def translate(node: gs.Node, opset: int) -> Step:
    """Return what runs a node. Raises UnusableInput where it is not covered."""
    known = _RULES if node.domain in (None, "", "ai.onnx") else {}
    if opset < 13:
        known = known | _BEFORE_13
    try:
        return known.get(node.op, _unknown)(node)
    except _NotCovered as error:
        raise UnusableInput(
            f"There is no gradient through {node.op} {node.name}: {error}. Leave out the "
            "passes and options that need gradients, such as heal."
        ) from error


def _unknown(_: gs.Node) -> Step:
    raise _NotCovered("the operator is not covered")


def _single(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    """Return the rule of an operator without attributes."""
    return lambda _: lambda *inputs: (function(*inputs),)


def _static(node: gs.Node, index: int, attribute: str = "") -> list[int] | None:
    """Read whole numbers from a constant input, or from the attribute that older opsets have.

    None where the node has neither.
    """
    if attribute and attribute in node.attrs:
        value = node.attrs[attribute]
        return [int(v) for v in np.atleast_1d(value)]
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    tensor = node.inputs[index]
    if not is_constant(tensor):
        raise _NotCovered(f'"{tensor.name}" is computed, and would have to be a constant')
    return [int(v) for v in tensor.values.reshape(-1)]


def _needed(node: gs.Node, index: int, attribute: str = "") -> list[int]:
    found = _static(node, index, attribute)
    if found is None:
        raise _NotCovered(f"it lacks {attribute or f'input {index}'}")
    return found


def _number(node: gs.Node, index: int, attribute: str) -> float | int | None:
    """Read a number from a constant input, or an attribute; None where there is neither."""
    if attribute in node.attrs:
        return float(node.attrs[attribute])
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    if not is_constant(node.inputs[index]):
        raise _NotCovered(f'"{node.inputs[index].name}" would have to be a constant')
    found: float | int = node.inputs[index].values.item()
    return found


# ---- element by element ----


def _clip(node: gs.Node) -> Step:
    low, high = _number(node, 1, "min"), _number(node, 2, "max")
    if low is None and high is None:
        return lambda x, *_: (x,)
    return lambda x, *_: (torch.clamp(x, low, high),)


def _gelu(node: gs.Node) -> Step:
    approximate = node.attrs.get("approximate", "none")
    return lambda x: (functional.gelu(x, approximate=approximate),)


def _hard_sigmoid(node: gs.Node) -> Step:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    return lambda x: (torch.clamp(alpha * x + beta, 0, 1),)


def _leaky_relu(node: gs.Node) -> Step:
    slope = node.attrs.get("alpha", 0.01)
    return lambda x: (functional.leaky_relu(x, slope),)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _cast(node: gs.Node) -> Step:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    kind = kinds.get(int(node.attrs["to"]))
    if kind is None:
        raise _NotCovered("it casts to a kind of number that is not covered")
    return lambda x: (x.to(kind),)


# ---- shapes ----


def _reshape(node: gs.Node) -> Step:
    sizes = _needed(node, 1)
    if node.attrs.get("allowzero", 0):
        return lambda x, _: (x.reshape(sizes),)
    return lambda x, _: (
        x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]),
    )


def _flatten(node: gs.Node) -> Step:
    axis = int(node.attrs.get("axis", 1))

    def run(x: Tensor) -> Sequence[Tensor]:
        ahead = axis if axis >= 0 else axis + x.ndim
        return (x.reshape(math.prod(x.shape[:ahead]), -1),)

    return run


def _transpose(node: gs.Node) -> Step:
    order = node.attrs.get("perm")
    return lambda x: (x.permute(order or tuple(reversed(range(x.ndim)))),)


def _squeeze(node: gs.Node) -> Step:
    axes = _static(node, 1, "axes")

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else axes
        return (x.squeeze(tuple(gone)),)

    return run


def _unsqueeze(node: gs.Node) -> Step:
    axes = _needed(node, 1, "axes")

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return (x,)

    return run


def _expand(node: gs.Node) -> Step:
    sizes = _needed(node, 1)
    return lambda x, _: (x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes))),)


def _concat(node: gs.Node) -> Step:
    axis = int(node.attrs["axis"])
    return lambda *parts: (torch.cat(parts, axis),)


def _split(node: gs.Node) -> Step:
    axis, sizes, count = int(node.attrs.get("axis", 0)), _static(node, 1, "split"), 0
    if sizes is None:
        count = int(node.attrs.get("num_outputs", len(node.outputs)))

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        return torch.split(x, sizes or -(-x.shape[axis] // count), axis)

    return run


def _slice(node: gs.Node) -> Step:
    starts, ends = _needed(node, 1, "starts"), _needed(node, 2, "ends")
    axes = _static(node, 3, "axes") or list(range(len(starts)))
    steps = _static(node, 4) or [1] * len(starts)

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            picked = range(x.shape[axis])[slice(start, end if end >= -(2**62) else None, step)]
            if step > 0:
                x = x.narrow(axis, picked.start, max(picked.stop - picked.start, 0))
                if step > 1:
                    x = x.index_select(axis, torch.arange(0, x.shape[axis], step))
            else:
                x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64))
        return (x,)

    return run


def _gather(node: gs.Node) -> Step:
    axis = int(node.attrs.get("axis", 0))

    def run(x: Tensor, at: Tensor) -> Sequence[Tensor]:
        size = x.shape[axis]
        at = torch.where(at < 0, at + size, at).to(torch.int64)
        picked = x.index_select(axis, at.reshape(-1))
        ahead = axis % x.ndim
        return (picked.reshape(*x.shape[:ahead], *at.shape, *x.shape[ahead + 1 :]),)

    return run


def _pad(node: gs.Node) -> Step:
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) > 3:
        raise _NotCovered("only padding of all axes with a constant is covered")
    pads, value = _needed(node, 1, "pads"), _number(node, 2, "value") or 0.0
    return lambda x, *_: (functional.pad(x, _innermost_first(pads), value=value),)


def _innermost_first(pads: Sequence[int]) -> list[int]:
    """Return all befores and then all afters as torch has them: pairs, last axis first."""
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]


# ---- sums over axes ----


def _reduction(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    def rule(node: gs.Node) -> Step:
        axes, keep = _static(node, 1, "axes"), bool(node.attrs.get("keepdims", 1))
        if not axes and node.attrs.get("noop_with_empty_axes", 0):
            return lambda x, *_: (x,)
        return lambda x, *_: (function(x, dim=axes or list(range(x.ndim)), keepdim=keep),)

    return rule


def _softmax(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    def rule(node: gs.Node) -> Step:
        axis = int(node.attrs.get("axis", -1))
        return lambda x: (function(x, dim=axis),)

    return rule


def _flat_softmax(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    """Return the rule of before opset 13, where all from the axis on is one row."""

    def rule(node: gs.Node) -> Step:
        axis = int(node.attrs.get("axis", 1))
        return lambda x: (function(x.flatten(axis), dim=-1).reshape(x.shape),)

    return rule


def _layer_norm(node: gs.Node) -> Step:
    if int(node.attrs.get("axis", -1)) != -1 or len(node.outputs) > 1:
        raise _NotCovered("only normalizing the last axis is covered")
    epsilon = node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
        normal = functional.layer_norm(x, x.shape[-1:], eps=epsilon) * scale
        return (normal if bias is None else normal + bias,)

    return run


def _batch_norm(node: gs.Node) -> Step:
    if len(node.outputs) > 1:
        raise _NotCovered("its statistics are outputs")
    epsilon = node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> list[Tensor]:
        by = (-1, *[1] * (x.ndim - 2))
        scaled = scale / torch.sqrt(var + epsilon)
        return [x * scaled.reshape(by) + (bias - mean * scaled).reshape(by)]

    return run


# ---- products ----


def _gemm(node: gs.Node) -> Step:
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    a_turned, b_turned = node.attrs.get("transA", 0), node.attrs.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Sequence[Tensor]:
        y = alpha * ((a.T if a_turned else a) @ (b.T if b_turned else b))
        return (y if c is None else y + beta * c,)

    return run


def _conv(node: gs.Node) -> Step:
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


def _conv_transpose(node: gs.Node) -> Step:
    axes = len(node.inputs[1].shape) - 2
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or node.attrs.get("output_shape"):
        raise _NotCovered("automatic padding is not covered")
    pads = [int(p) for p in node.attrs.get("pads") or [0] * (2 * axes)]
    if pads[:axes] != pads[axes:]:
        raise _NotCovered("its padding differs before and after")
    function = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}.get(axes)
    if function is None:
        raise _NotCovered(f"it has {axes} spatial axes")
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
        self._auto = node.attrs.get("auto_pad", "NOTSET")
        self._pads = [int(p) for p in node.attrs.get("pads") or [0] * (2 * axes)]

    def pads(self, x: Tensor) -> list[int]:
        """Return the padding of an input as torch has it."""
        if self._auto == "NOTSET":
            return _innermost_first(self._pads)
        if self._auto == "VALID":
            return [0] * len(self._pads)
        sizes = x.shape[-len(self.strides) :]
        totals = [
            max((-(-size // s) - 1) * s + e - size, 0)
            for size, s, e in zip(sizes, self.strides, self._extents, strict=True)
        ]
        less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = self._auto == "SAME_UPPER"
        return _innermost_first([*less, *more] if upper else [*more, *less])


def _max_pool(node: gs.Node) -> Step:
    window, kernel, function = _pool(node, functional.max_pool1d, functional.max_pool2d)
    if len(node.outputs) > 1:
        raise _NotCovered("it says where the largest were")

    def run(x: Tensor) -> Sequence[Tensor]:
        padded = functional.pad(x, window.pads(x), value=-math.inf)
        return (function(padded, kernel, window.strides, 0, window.dilations),)

    return run


def _average_pool(node: gs.Node) -> Step:
    window, kernel, function = _pool(node, functional.avg_pool1d, functional.avg_pool2d)
    if any(d != 1 for d in window.dilations):
        raise _NotCovered("dilated averages are not covered")
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
        raise _NotCovered("only pools over one or two axes, without ceil_mode, are covered")
    return _Window(node, len(kernel), kernel), kernel, one if len(kernel) == 1 else two


def _resize(node: gs.Node) -> Step:
    sizes = node.outputs[0].shape
    mode = node.attrs.get("mode", "nearest")
    where = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
    before = static_shape(node.inputs[0])
    if static_shape(node.outputs[0]) is None or before is None or len(before) != 4:
        raise _NotCovered("only images of known sizes are covered")
    if list(before[:2]) != list(sizes[:2]) or node.attrs.get("antialias", 0):
        raise _NotCovered("only height and width may change, without antialias")
    if (
        node.attrs.get("axes")
        or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise _NotCovered("only sizes of all axes are covered")
    if not _whole(node, before, sizes):
        raise _NotCovered("its scales do not make whole sizes")
    if where == "pytorch_half_pixel" and 1 in sizes[2:]:
        raise _NotCovered('"pytorch_half_pixel" to size 1 is not covered')
    spatial = [int(n) for n in sizes[2:]]
    if mode == "nearest" and where == "asymmetric" and rounding == "floor":
        return lambda x, *_: (functional.interpolate(x, spatial, mode="nearest"),)
    if mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        aligned = where == "align_corners"
        return lambda x, *_: (
            functional.interpolate(x, spatial, mode="bilinear", align_corners=aligned),
        )
    raise _NotCovered(f'mode "{mode}" with "{where}" and "{rounding}" is not covered')


def _whole(node: gs.Node, before: Sequence[int], after: Sequence[int]) -> bool:
    """Say whether the scales, if there are some, are just the ratios of the sizes."""
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    if scales is None or not scales.name:
        return True
    if not is_constant(scales):
        return False
    ratios = np.divide(after, before)
    return not scales.values.size or bool(np.allclose(scales.values, ratios, rtol=1e-6))


def _max(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


def _min(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def _l2(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)
    return length


_RULES: dict[str, Callable[[gs.Node], Step]] = {
    "Abs": _single(torch.abs),
    "Add": _single(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _single(torch.cos),
    "Div": _single(_divide),
    "Equal": _single(torch.eq),
    "Erf": _single(torch.erf),
    "Exp": _single(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _single(lambda x: x.mean(dim=list(range(2, x.ndim)), keepdim=True)),
    "Greater": _single(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _single(functional.hardswish),
    "Identity": _single(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky_relu,
    "Less": _single(torch.lt),
    "Log": _single(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _single(torch.matmul),
    "Max": _single(_max),
    "MaxPool": _max_pool,
    "Min": _single(_min),
    "Mul": _single(torch.mul),
    "Neg": _single(torch.neg),
    "Not": _single(torch.logical_not),
    "Pad": _pad,
    "Pow": _single(torch.pow),
    "Reciprocal": _single(torch.reciprocal),
    "ReduceL2": _reduction(_l2),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _single(functional.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _single(torch.sigmoid),
    "Sin": _single(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _single(functional.softplus),
    "Split": _split,
    "Sqrt": _single(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _single(torch.sub),
    "Tanh": _single(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _single(torch.where),
}
# What was otherwise in opsets before 13.
_BEFORE_13: dict[str, Callable[[gs.Node], Step]] = {
    "LogSoftmax": _flat_softmax(torch.log_softmax),
    # Before opset 11 it placed its samples in another way.
    "Resize": _unknown,
    "Softmax": _flat_softmax(torch.softmax),
}
