"""What ONNX operators do, in torch: each rule reads a node and returns what runs it."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch.nn import functional

from tilewright.autograd_reading import (
    NotCovered,
    Step,
    Tensor,
    innermost_first,
    needed,
    number,
    static,
)
from tilewright.autograd_windows import average_pool, conv, conv_transpose, max_pool, resize
from tilewright.errors import UnusableInput


def translate(node: gs.Node, opset: int) -> Step:
    """Return what runs a node. Raises UnusableInput where it is not covered."""
    rules = _RULES | _BEFORE_13 if opset < 13 else _RULES
    known = rules if node.domain in (None, "", "ai.onnx") else {}
    try:
        return known.get(node.op, _unknown)(node)
    except NotCovered as error:
        raise UnusableInput(
            f"There is no gradient through {node.op} {node.name}: {error}. Leave out the "
            "passes and options that need gradients, such as heal."
        ) from error


def _unknown(_: gs.Node) -> Step:
    raise NotCovered("the operator is not covered")


def _single(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    """Return the rule of an operator without attributes."""
    return lambda _: lambda *inputs: (function(*inputs),)


# ---- element by element ----


def _clip(node: gs.Node) -> Step:
    low, high = number(node, 1, "min"), number(node, 2, "max")
    if low is None and high is None:
        return lambda x, *_: (x,)
    if low is None or high is None or low > high:
        return lambda x, *_: (torch.clamp(x, low, high),)

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        # As clamp, but backwards in one operation instead of four; there is none for integers.
        clamped = functional.hardtanh if x.is_floating_point() else torch.clamp
        return (clamped(x, low, high),)

    return run


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
        raise NotCovered("it casts to a kind of number that is not covered")
    return lambda x: (x.to(kind),)


# ---- shapes ----


def _reshape(node: gs.Node) -> Step:
    sizes = needed(node, 1)
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
    axes = static(node, 1, "axes")

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else axes
        return (x.squeeze(tuple(gone)),)

    return run


def _unsqueeze(node: gs.Node) -> Step:
    axes = needed(node, 1, "axes")

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return (x,)

    return run


def _expand(node: gs.Node) -> Step:
    sizes = needed(node, 1)
    return lambda x, _: (x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes))),)


def _concat(node: gs.Node) -> Step:
    axis = int(node.attrs["axis"])
    return lambda *parts: (torch.cat(parts, axis),)


def _split(node: gs.Node) -> Step:
    axis, sizes, count = int(node.attrs.get("axis", 0)), static(node, 1, "split"), 0
    if sizes is None:
        count = int(node.attrs.get("num_outputs", len(node.outputs)))

    def run(x: Tensor, *_: Tensor) -> Sequence[Tensor]:
        return torch.split(x, sizes or -(-x.shape[axis] // count), axis)

    return run


def _slice(node: gs.Node) -> Step:
    starts, ends = needed(node, 1, "starts"), needed(node, 2, "ends")
    axes = static(node, 3, "axes") or list(range(len(starts)))
    steps = static(node, 4) or [1] * len(starts)

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
        raise NotCovered("only padding of all axes with a constant is covered")
    pads, value = needed(node, 1, "pads"), number(node, 2, "value") or 0.0
    return lambda x, *_: (functional.pad(x, innermost_first(pads), value=value),)


# ---- sums over axes ----


def _reduction(function: Callable[..., Tensor]) -> Callable[[gs.Node], Step]:
    def rule(node: gs.Node) -> Step:
        axes, keep = static(node, 1, "axes"), bool(node.attrs.get("keepdims", 1))
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
        raise NotCovered("only normalizing the last axis is covered")
    epsilon = node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
        normal = functional.layer_norm(x, x.shape[-1:], eps=epsilon) * scale
        return (normal if bias is None else normal + bias,)

    return run


def _batch_norm(node: gs.Node) -> Step:
    if len(node.outputs) > 1:
        raise NotCovered("its statistics are outputs")
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
    "AveragePool": average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
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
    "MaxPool": max_pool,
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
    "Resize": resize,
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
