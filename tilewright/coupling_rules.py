"""How operators couple the axes of what they read and write."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.dimensions import (
    Dimension,
    Extent,
    align,
    freeze,
    keep_count,
    product,
    size_of,
    total,
    unify,
)
from tilewright.graph import is_constant

# Gives how many entries of an extent are left.
Count = Callable[[Extent], int]


class NotFollowed(Exception):
    """What a node does with its axes is not known; the reason is for a note."""


class Axes(Protocol):
    """The axes of a graph's tensors, as rules see them."""

    def of(self, tensor: gs.Tensor) -> list[Extent]:
        """Return what a tensor's axes are made of. Raises NotFollowed for unknown shapes."""

    def sums_over(self, node: gs.Node, extent: Extent) -> None:
        """Note that a node adds up the products of an extent's entries of its first input."""

    def counts(
        self, node: gs.Node, place: int | str, numbers: Callable[[Count], object]
    ) -> None:
        """Note that an input or attribute of a node counts entries: `numbers` gives it."""


Rule = Callable[[Axes, gs.Node], None]


def _elementwise(axes: Axes, node: gs.Node) -> None:
    for tensor in node.inputs:
        if tensor.name:
            _broadcast(axes.of(tensor), axes.of(node.outputs[0]))


def _broadcast(small: Sequence[Extent], large: Sequence[Extent]) -> None:
    """Couple axes from the last one on, but for those that are repeated."""
    for one, other in zip(reversed(small), reversed(large), strict=False):
        if size_of(one) == size_of(other):
            unify(one, other)


def _same(ones: Sequence[Extent], others: Sequence[Extent]) -> None:
    for one, other in zip(ones, others, strict=True):
        unify(one, other)


def _matmul(axes: Axes, node: gs.Node) -> None:
    left, right = (axes.of(t) for t in node.inputs)
    out = axes.of(node.outputs[0])
    deep = right[-2] if len(right) > 1 else right[0]
    unify(left[-1], deep)
    axes.sums_over(node, deep)
    own = [*left[-2:-1], *(right[-1:] if len(right) > 1 else [])]
    batch = len(out) - len(own)
    _same(own, out[batch:])
    _broadcast(left[:-2], out[:batch])
    _broadcast(right[:-2], out[:batch])


def _gemm(axes: Axes, node: gs.Node) -> None:
    left, right = (axes.of(t) for t in node.inputs[:2])
    rows, deep = left[::-1] if node.attrs.get("transA") else left
    inner, columns = right[::-1] if node.attrs.get("transB") else right
    out = axes.of(node.outputs[0])
    unify(deep, inner)
    axes.sums_over(node, deep)
    _same([rows, columns], out)
    if len(node.inputs) > 2 and node.inputs[2].name:
        _broadcast(axes.of(node.inputs[2]), out)


def _conv(axes: Axes, node: gs.Node) -> None:
    """Channels are groups times those of a group; taps and positions stay as they are."""
    source, weight = (axes.of(t) for t in node.inputs[:2])
    out = axes.of(node.outputs[0])
    groups = Dimension(int(node.attrs.get("group", 1)))
    inputs = Dimension(size_of(source[1]) // groups.size)
    outputs = Dimension(size_of(out[1]) // groups.size)
    whole = [product([groups, inputs]), product([groups, outputs])]
    stored = [whole[0], outputs] if node.op == "ConvTranspose" else [whole[1], inputs]
    _same([source[1], out[1]], whole)
    _same(weight[:2], stored)
    unify(source[0], out[0])
    if len(node.inputs) > 2 and node.inputs[2].name:
        unify(axes.of(node.inputs[2])[0], out[1])
    for extent in (*weight[2:], *source[2:], *out[2:]):
        freeze(extent, "a window moves over it")
    axes.sums_over(node, inputs)
    if groups.size > 1:
        axes.counts(node, "group", lambda count: count(groups))


def _by_channel(axes: Axes, node: gs.Node) -> None:
    """Further inputs have an entry a channel."""
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    _same(source, out)
    for tensor in node.inputs[1:]:
        unify(axes.of(tensor)[0], source[1])


def _window(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    _same(source[:2], out[:2])
    for extent in (*source[2:], *out[2:]):
        freeze(extent, "a window moves over it")


def _resize(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    for one, other in zip(source[2:], out[2:], strict=True):
        freeze(one, "it is resized")
        freeze(other, "it is resized")
    if [size_of(e) for e in source[:2]] != [size_of(e) for e in out[:2]]:
        raise NotFollowed("resizes channels")
    _same(source[:2], out[:2])
    if len(node.inputs) > 3 and node.inputs[3].name:
        _constant(node, 3)
        axes.counts(node, 3, lambda count: [count(e) for e in out])


def _layer_norm(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    _same(source, out)
    for tensor in node.inputs[1:]:
        if tensor.name:
            _broadcast(axes.of(tensor), out)
    for extent in source[int(node.attrs.get("axis", -1)) :]:
        keep_count(extent, f"{node.name} normalizes over it")


def _softmax(axes: Axes, node: gs.Node) -> None:
    source = axes.of(node.inputs[0])
    _same(source, axes.of(node.outputs[0]))
    keep_count(source[int(node.attrs.get("axis", -1))], f"{node.name} normalizes over it")


def _reduce(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    listed = node.attrs.get("axes")
    if listed is None and len(node.inputs) > 1 and node.inputs[1].name:
        listed = _constant(node, 1).tolist()
    if listed is None:
        listed = [] if node.attrs.get("noop_with_empty_axes") else range(len(source))
    reduced = {int(a) % len(source) for a in listed}
    kept = [e for a, e in enumerate(source) if a not in reduced]
    if node.attrs.get("keepdims", 1):
        out = [e for a, e in enumerate(out) if a not in reduced]
    _same(kept, out)
    for axis in reduced:
        if node.op in ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"):
            axes.sums_over(node, source[axis])
        else:
            keep_count(source[axis], f"{node.name} takes its {node.op[6:].lower()}")


def _reshape(axes: Axes, node: gs.Node) -> None:
    """Entries keep their order: axes are products of the same dimensions, cut elsewhere."""
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    align(source, out)
    if node.op == "Reshape":
        shape = _constant(node, 1).tolist()
        # 0 copies an extent, and -1 is what is left.
        axes.counts(
            node,
            1,
            lambda count: [n if n <= 0 else count(e) for n, e in zip(shape, out, strict=True)],
        )


def _expand(axes: Axes, node: gs.Node) -> None:
    out = axes.of(node.outputs[0])
    _broadcast(axes.of(node.inputs[0]), out)
    shape = _constant(node, 1).tolist()
    behind = out[len(out) - len(shape) :]
    axes.counts(
        node,
        1,
        lambda count: [n if n == 1 else count(e) for n, e in zip(shape, behind, strict=True)],
    )


def _transpose(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    perm = node.attrs.get("perm", range(len(source))[::-1])
    _same([source[p] for p in perm], out)


def _concat(axes: Axes, node: gs.Node) -> None:
    out = axes.of(node.outputs[0])
    axis = int(node.attrs["axis"]) % len(out)
    parts = [axes.of(t) for t in node.inputs]
    unify(out[axis], total([p[axis] for p in parts]))
    for part in parts:
        _same(part[:axis] + part[axis + 1 :], out[:axis] + out[axis + 1 :])


def _split(axes: Axes, node: gs.Node) -> None:
    source = axes.of(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(source)
    parts = [axes.of(t) for t in node.outputs]
    unify(source[axis], total([p[axis] for p in parts]))
    for part in parts:
        _same(part[:axis] + part[axis + 1 :], source[:axis] + source[axis + 1 :])
    place: int | str = "split" if "split" in node.attrs else 1
    if place == 1 and len(node.inputs) < 2 and "num_outputs" not in node.attrs:
        # Without sizes, and before opset 18, all parts are equally long.
        for part in parts:
            keep_count(part[axis], f"{node.name} cuts it into equal parts")
        return
    axes.counts(node, place, lambda count: [count(p[axis]) for p in parts])


def _slice(axes: Axes, node: gs.Node) -> None:
    source, out = axes.of(node.inputs[0]), axes.of(node.outputs[0])
    starts, ends = (_constant(node, i).tolist() for i in (1, 2))
    given = len(node.inputs) > 3 and node.inputs[3].name
    listed = _constant(node, 3).tolist() if given else list(range(len(starts)))
    stepped = len(node.inputs) > 4 and node.inputs[4].name
    steps = _constant(node, 4).tolist() if stepped else [1] * len(starts)
    sliced = {a % len(source): i for i, a in enumerate(listed)}
    cuts: dict[int, tuple[Extent, Extent]] = {}
    for axis, (one, other) in enumerate(zip(source, out, strict=True)):
        if axis not in sliced:
            unify(one, other)
            continue
        i, size = sliced[axis], size_of(one)
        if steps[i] != 1:
            freeze(one, f"{node.name} takes every few entries of it")
            freeze(other, f"{node.name} takes every few entries of it")
            continue
        start = min(max(starts[i] + (size if starts[i] < 0 else 0), 0), size)
        before, behind = Dimension(start), Dimension(size - start - size_of(other))
        unify(one, total([before, other, behind]))
        cuts[i] = before, other

    def firsts(count: Count) -> list[int]:
        return [count(cuts[i][0]) if i in cuts else n for i, n in enumerate(starts)]

    def lasts(count: Count) -> list[int]:
        return [sum(map(count, cuts[i])) if i in cuts else n for i, n in enumerate(ends)]

    axes.counts(node, 1, firsts)
    axes.counts(node, 2, lasts)


def _gather(axes: Axes, node: gs.Node) -> None:
    source, picked = (axes.of(t) for t in node.inputs)
    axis = int(node.attrs.get("axis", 0)) % len(source)
    freeze(source[axis], f"{node.name} picks entries of it by their number")
    _same([*source[:axis], *picked, *source[axis + 1 :]], axes.of(node.outputs[0]))


def _quantizer(axes: Axes, node: gs.Node) -> None:
    source = axes.of(node.inputs[0])
    _same(source, axes.of(node.outputs[0]))
    if node.attrs.get("block_size"):
        raise NotFollowed("scales blocks of entries")
    for tensor in node.inputs[1:]:
        for extent in axes.of(tensor) if tensor.name else ():
            if size_of(extent) > 1:
                unify(extent, source[int(node.attrs.get("axis", 1))])


def _constant(node: gs.Node, place: int) -> np.ndarray:
    tensor = node.inputs[place]
    if not is_constant(tensor):
        raise NotFollowed(f'reads "{tensor.name}", which is computed, as numbers')
    values: np.ndarray = tensor.values
    return values


_ELEMENTWISE = [
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
]
_REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCE), _reduce),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _by_channel),
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), _window
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantizer),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Resize": _resize,
    "Expand": _expand,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
}
