"""Reductions, softmax and layer normalization: operators that work on rows."""

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.targets.kernels.reductions import (
    LayerNormKernel,
    LogSoftmaxKernel,
    ReduceKernel,
    SoftmaxKernel,
    SplitSoftmaxKernel,
)
from tilewright.targets.kernels.rows import RowShape
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.program import Kernel
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import Window, collapse


def lower_reduce(lowering: Lowering, region: Region) -> None:
    """Lower a reduction over any axes; a chain may follow."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    axes = _reduced_axes(node, rank)
    shape = static_shape(node.outputs[0])
    assert shape is not None
    if not axes or shape == window.shape:
        raise NotLowered(f"{node.op} that reduces nothing")
    kept = [a for a in range(rank) if a not in axes]
    # The result in the source's axes: extent 1 where reduced.
    wide = tuple(1 if a in axes else n for a, n in enumerate(window.shape))
    order = [a for a in window.order if a in kept] if len(shape) == len(kept) else window.order
    if len(shape) != rank:
        places = {a: i for i, a in enumerate(kept)}
        order = tuple(places[a] for a in order)
    chain, operands, outputs = lowering.chain_of(region, node.outputs[0], order)
    if len(outputs) != 1:
        raise NotLowered(f"{node.op} whose parts are read by others")
    shown = [_with_axes(w, wide, kept) for w in (*operands, *outputs)]
    rows, operand_rows = _rows(window, shown[-1], axes, shown[:-1])
    kernel = ReduceKernel(
        op="ReduceMean" if node.op == "GlobalAveragePool" else node.op,
        rows=rows,
        chain=chain,
        operands=operand_rows,
        operand_dtypes=tuple(w.dtype for w in operands),
        target_dtype=outputs[0].dtype,
    )
    lowering.program.call(kernel, [window, *outputs, *operands], [n.name for n in region.nodes])


def lower_softmax(lowering: Lowering, region: Region) -> None:
    """Lower Softmax and LogSoftmax along one axis (or, before opset 13, the last ones)."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    if lowering.graph.opset >= 13:
        axes = [int(node.attrs.get("axis", -1)) % rank]
    else:
        axes = list(range(int(node.attrs.get("axis", 1)) % rank, rank))
    target = lowering.program.tensor(
        node.outputs[0].name, window.shape, "float32", window.order, window.run
    )
    rows, _ = _rows(window, target, axes, [])
    kernel: Kernel
    if node.op == "LogSoftmax":
        kernel = LogSoftmaxKernel(rows)
    elif SplitSoftmaxKernel.fits(rows, lowering.isa):
        kernel = SplitSoftmaxKernel(rows)
    else:
        kernel = SoftmaxKernel(rows)
    lowering.program.call(kernel, [window, target], [node.name])
    lowering.define(node.outputs[0], target)


def lower_layer_norm(lowering: Lowering, region: Region) -> None:
    """Lower LayerNormalization over the last axes."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    first = int(node.attrs.get("axis", -1)) % rank
    if any(lowering.is_read(t) for t in node.outputs[1:]):
        raise NotLowered("LayerNormalization whose mean or deviation is read")
    if not all(is_constant(t) for t in node.inputs[1:] if t.name):
        raise NotLowered("LayerNormalization with a computed scale or bias")
    rows_alike = tuple(1 if a < first else n for a, n in enumerate(window.shape))
    for tensor in node.inputs[1:]:
        if tensor.name and np.broadcast_shapes(tensor.shape, rows_alike) != rows_alike:
            raise NotLowered("LayerNormalization with another scale or bias for each row")
    chain, operands, targets = lowering.chain_of(
        region, node.outputs[0], window.order, window.run
    )
    target = targets[0]
    if operands or any(t.strides != target.strides for t in targets):
        raise NotLowered("LayerNormalization with operands behind it")
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    parameters = [
        lowering.window(t).broadcast(window.shape) for t in node.inputs[1 : 2 + has_bias]
    ]
    rows, walks = _rows(window, target, list(range(first, rank)), parameters, reduced=True)
    if len(set(walks)) != 1:
        raise NotLowered("LayerNormalization whose scale and bias lie differently")
    kernel = LayerNormKernel(
        rows,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),
        has_bias=has_bias,
        parameters=walks[0],
        chain=chain,
        output_dtypes=tuple(t.dtype for t in targets),
    )
    arguments = [window, *targets, *parameters]
    lowering.program.call(kernel, arguments, [n.name for n in region.nodes])


def _rows(
    source: Window,
    target: Window,
    axes: list[int],
    others: list[Window],
    reduced: bool = False,
) -> tuple[RowShape, tuple[tuple[int, ...], ...]]:
    """Arrange kept and reduced axes for a row kernel.

    `target` and `others` have the source's rank. Others are walked along the kept axes, or with
    `reduced` along the reduced ones. Lanes take the axis that is contiguous in memory.
    """
    order = [a for a in source.order if source.shape[a] > 1]
    kept = [a for a in order if a not in axes]
    inner = [a for a in order if a in axes]
    vertical = bool(kept) and (not order or order[-1] in kept)
    if vertical and target.strides[kept[-1]] != 1:
        vertical = False
    windows = [source, target, *others]

    def part(chosen: list[int]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        shape = [source.shape[a] for a in chosen]
        return collapse(shape, [[w.strides[a] for a in chosen] for w in windows])

    (outer_dims, outer_steps), (inner_dims, inner_steps) = part(kept), part(inner)
    shape = RowShape(
        kept=outer_dims,
        reduced=inner_dims,
        source=(*outer_steps[0], *inner_steps[0]),
        target=(*outer_steps[1], *inner_steps[1]),
        vertical=vertical and source.strides[kept[-1]] == 1,
    )
    walks = (inner_steps if reduced else outer_steps)[2:]
    return shape, tuple(walks)


def _with_axes(window: Window, wide: tuple[int, ...], kept: list[int]) -> Window:
    """Show a reduction's result in the source's axes."""
    if len(window.shape) == len(wide):
        return window
    strides = [0] * len(wide)
    for axis, stride in zip(kept, window.strides, strict=True):
        strides[axis] = stride
    return replace(window, shape=wide, strides=tuple(strides))


def _reduced_axes(node: gs.Node, rank: int) -> list[int]:
    if node.op == "GlobalAveragePool":
        return list(range(2, rank))
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        if not is_constant(node.inputs[1]):
            raise NotLowered(f"{node.op} over computed axes")
        axes = node.inputs[1].values.tolist()
    if not axes:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in axes]
