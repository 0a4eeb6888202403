"""Layers whose activations and weights are 8-bit integers, onto the integer kernel."""

import math

import numpy as np

from tilewright.graph import static_shape
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.integer import INTERLEAVED, IntegerKernel
from tilewright.targets.lower.integer_tiles import PackedIntegers, pack_integers
from tilewright.targets.lower.layer import (
    along_positions,
    bias_window,
    positions_order,
    problem_of,
    scale_window,
)
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.program import LAUNCH, Ref
from tilewright.targets.lower.quantized import IntegerLayer
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.tiles import dense_steps, sparse_steps
from tilewright.targets.lower.window import Window, collapse

_ROWS = 32  # output channels of a tile: as many as pay for packing its activations
_SHIFT = 128  # from int8 activations to the unsigned ones that the kernel multiplies


def lower_integers(lowering: Lowering, region: Region) -> None:
    """Lower a layer on integers with the elementwise nodes behind it."""
    node = region.anchor
    layer = lowering.integers(node)
    assert layer is not None, f"{node.name} is not quantized"
    if 2 * 255 * np.abs(layer.matrix.astype(np.int64)).sum(axis=1).max(initial=0) >= 1 << 31:
        raise NotLowered(f"{node.op} whose sums may not fit 32 bits")
    result = node.outputs[0]
    shape = static_shape(result)
    assert shape is not None, f"{result.name} has no static shape"
    problem = problem_of(lowering, node, layer.source, layer.matrix, layer.zero)
    problem = along_positions(lowering, node, layer.source, problem)
    channel = problem.channel
    order, run = positions_order(node, shape, channel)
    chain, operands, outputs = lowering.chain_of(
        region,
        result,
        order,
        run,
        bias=bias_window(lowering, node, shape, channel),
        scale=scale_window(
            lowering, node, layer.scales * np.float32(layer.scale), shape, channel
        ),
    )
    axes = [a for a in range(len(shape)) if a != channel]
    windows = [*operands, *outputs]
    walks = [problem.source.strides, *(tuple(w.strides[a] for a in axes) for w in windows)]
    dims, rows = collapse([shape[a] for a in axes], walks)
    lanes = lowering.isa.lanes
    if len(dims) > 3 or dims[-1] < lanes:
        raise NotLowered(f"{node.op} with fewer than {lanes} positions in a row")
    extents = (1,) * (3 - len(dims)) + dims
    steps = [(0,) * (3 - len(dims)) + row for row in rows]
    ends = [
        Strides(b, w.strides[channel], y, x)
        for (b, y, x), w in zip(steps[1:], windows, strict=True)
    ]
    packed, dense = _pack(lowering, layer, problem.offsets)
    positions = math.prod(dims)
    kernel = IntegerKernel(
        images=extents[0],
        height=extents[1],
        width=extents[2],
        source=Strides(steps[0][0], 0, *steps[0][1:]),
        source_dtype=problem.source.dtype,
        most_words=packed.most_words,
        chain=chain,
        operands=tuple(ends[: len(operands)]),
        operand_dtypes=tuple(w.dtype for w in operands),
        outputs=tuple(ends[len(operands) :]),
        output_dtypes=tuple(w.dtype for w in outputs),
        macs=positions * packed.steps,
    )
    parts = [
        lowering.program.constant(f"{node.name}.{part}", getattr(packed, part))
        for part in ("values", "offsets", "table", "rows", "starts")
    ]
    order_of_bytes = lowering.program.constant("interleaved", INTERLEAVED.view(np.int32))
    source = Ref(problem.source.buffer, problem.source.offset)
    arguments: list[Window | Ref] = [
        source,
        *parts,
        order_of_bytes,
        Ref(LAUNCH),
        *windows,
    ]
    lowering.program.call(kernel, arguments, [n.name for n in region.nodes])
    matrix = layer.matrix
    density = float(np.count_nonzero(matrix) / matrix.size)
    lowering.program.layers.append(
        LayerDecision(
            name=node.name,
            op=node.op,
            shape=(matrix.shape[0], matrix.shape[1], positions),
            tile=f"{_ROWS}x1",
            density=density,
            bits=8,
            stored_bytes=packed.stored_bytes(),
            kernel=f"int8 {'dense' if dense else 'sparse'}, lanes = positions",
            reason=f"{1 - density:.0%} zeros",
        )
    )


def _pack(
    lowering: Lowering, layer: IntegerLayer, offsets: np.ndarray
) -> tuple[PackedIntegers, bool]:
    """Return the packed weights, and whether zeros are computed like any other weight."""
    matrix = layer.matrix
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    dense = bool(zeros < least) or sparse_steps(matrix, _ROWS) >= dense_steps(matrix, _ROWS)
    zero = layer.zero + (_SHIFT if layer.source.dtype == np.int8 else 0)
    return pack_integers(matrix, offsets, lowering.isa.dot, _ROWS, dense, zero), dense
