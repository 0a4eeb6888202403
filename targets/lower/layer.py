"""Layers (Conv, Gemm, MatMul by a constant) onto the tile kernel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.elementwise import Chain
from tilewright.targets.kernels.pen import Isa, vector_starts
from tilewright.targets.kernels.tile import PARALLEL_MACS, TileKernel, vectors_beside
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.planes import pad_planes, plane_shape
from tilewright.targets.lower.program import LAUNCH, Ref
from tilewright.targets.lower.quantized import lowered_layer, small_weights
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.tiles import (
    PackedTiles,
    dense_steps,
    pack_for_channels,
    pack_for_positions,
    sparse_steps,
)
from tilewright.targets.lower.window import Window, collapse

_WORD = 4  # int8 weights
POSITION_ROWS = 4  # output channels of a tile where lanes are positions
_CACHED_BYTES = 1 << 18  # of weights that stay in a second-level cache, beside activations
_NEAR_BYTES = 1 << 15  # of activations that stay in a first-level cache, beside weights
_DENSE_CHANNELS = 64  # and of a dense tile where lanes are channels


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer in the kernel's terms.

    `source` shows the activations with axes (positions...), at the place of input 0;
    `offsets` (inputs,) leads from there to each column's activation. `channel` is the axis of
    the outputs in the result's shape, the other axes are its positions. Where the matrix is
    int8, results are to be multiplied by `scales` (outputs,).
    """

    matrix: np.ndarray
    source: Window
    offsets: np.ndarray
    channel: int
    scales: np.ndarray | None = None

    def in_floats(self) -> "Problem":
        """Return the problem with its scales in its weights."""
        if self.scales is None:
            return self
        matrix = self.matrix.astype(np.float32) * self.scales[:, None]
        return replace(self, matrix=matrix, scales=None)


@dataclass(frozen=True)
class Choice:
    """How a layer runs, and why."""

    lanes: str
    dense: bool
    rows: int
    tile: str
    reason: str


def lower_layer(lowering: Lowering, region: Region) -> None:
    """Lower a layer with the elementwise nodes behind it."""
    node = region.anchor
    small = small_weights(node)
    if small is not None:
        problem = problem_of(lowering, node, node.inputs[0], small.matrix)
        run_layer(lowering, region, replace(problem, scales=small.scales))
        return
    layer = lowered_layer(node)
    if layer is None or layer.groups > 1:
        raise NotLowered(f"{node.op} without a constant matrix of its own")
    matrix = layer.matrix()
    if node.op == "Gemm":
        matrix = matrix * np.float32(node.attrs.get("alpha", 1.0))
    run_layer(lowering, region, problem_of(lowering, node, node.inputs[0], matrix))


def run_layer(lowering: Lowering, region: Region, problem: Problem) -> None:
    """Choose a kernel for a problem and call it, with the region's chain behind it."""
    node = region.anchor
    result = node.outputs[0]
    shape = static_shape(result)
    assert shape is not None, f"{result.name} has no static shape"
    choice = choose(lowering, node, problem, shape)
    axes = [a for a in range(len(shape)) if a != problem.channel]
    if choice.lanes == "positions":
        # Channels next to the last position axis: (batch..., channel, positions).
        order, run = positions_order(node, shape, problem.channel)
        problem = problem.in_floats()
        problem = along_positions(lowering, node, node.inputs[0], problem)
    else:
        order, run = [*axes, problem.channel], 0
        if problem.matrix.shape[0] % _WORD:
            # A tile of such a height has vectors of less than a word of int8.
            problem = problem.in_floats()
    chain, operands, outputs = lowering.chain_of(
        region,
        result,
        order,
        run,
        bias=bias_window(lowering, node, shape, problem.channel),
        scale=scale_window(lowering, node, problem.scales, shape, problem.channel),
    )
    call_tiles(lowering, region, problem, choice, chain, operands, outputs)


def call_tiles(
    lowering: Lowering,
    region: Region,
    problem: Problem,
    choice: Choice,
    chain: Chain,
    operands: Sequence[Window],
    outputs: Sequence[Window],
) -> None:
    """Pack a problem's weights and call the tile kernel on windows of the result's shape."""
    node, channel, matrix = region.anchor, problem.channel, problem.matrix
    shape = outputs[0].shape
    axes = [a for a in range(len(shape)) if a != channel]
    windows = [*operands, *outputs]
    walks = [problem.source.strides, *(tuple(w.strides[a] for a in axes) for w in windows)]
    dims, rows = collapse([shape[a] for a in axes], walks)
    if len(dims) > 3:
        raise NotLowered(f"{node.op} over {len(dims)} uneven position axes")
    extents = (1,) * (3 - len(dims)) + dims
    steps = [(0,) * (3 - len(dims)) + row for row in rows]
    ends = [
        Strides(b, w.strides[channel], y, x)
        for (b, y, x), w in zip(steps[1:], windows, strict=True)
    ]
    positions = math.prod(dims)
    packed = _pack(lowering, choice, matrix, problem.offsets)
    kernel = TileKernel(
        lanes=choice.lanes,
        heights=packed.heights,
        images=extents[0],
        height=extents[1],
        width=extents[2],
        source=Strides(steps[0][0], 0, *steps[0][1:]),
        chain=chain,
        operands=tuple(ends[: len(operands)]),
        operand_dtypes=tuple(w.dtype for w in operands),
        outputs=tuple(ends[len(operands) :]),
        output_dtypes=tuple(w.dtype for w in outputs),
        parallel=positions * packed.steps >= PARALLEL_MACS,
        split_positions=_split_positions(matrix, positions, packed),
        together=_together(packed),
        weights=matrix.dtype.name,
    )
    program = lowering.program
    weights = [
        program.constant(f"{node.name}.{part}", getattr(packed, part))
        for part in ("values", "offsets", "table", "rows", "groups")
    ]
    source = Ref(problem.source.buffer, problem.source.offset)
    program.call(
        kernel, [source, *weights, Ref(LAUNCH), *windows], [n.name for n in region.nodes]
    )
    program.layers.append(
        LayerDecision(
            name=node.name,
            op=node.op,
            shape=(matrix.shape[0], matrix.shape[1], positions),
            tile=choice.tile,
            density=float(np.count_nonzero(matrix) / matrix.size),
            bits=8 * matrix.itemsize,
            stored_bytes=packed.stored_bytes(),
            kernel=f"{'dense' if choice.dense else 'sparse'}, lanes = {choice.lanes}",
            reason=choice.reason,
        )
    )


def choose(
    lowering: Lowering, node: gs.Node, problem: Problem, shape: tuple[int, ...]
) -> Choice:
    """Choose lane order, tile and sparse or dense for a layer with results of `shape`."""
    matrix, channel = problem.matrix, problem.channel
    positions = math.prod(shape) // matrix.shape[0]
    order = lowering.target.order_for(positions)
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    # A convolution's lanes run along its maps, not over images.
    first = 2 if node.op == "Conv" else 0
    last = [n for a, n in enumerate(shape) if a != channel and a >= first and n > 1]
    if order.lanes == "positions" and last:
        sparse, dense = sparse_steps(matrix, POSITION_ROWS), dense_steps(matrix, POSITION_ROWS)
        if zeros >= least and sparse < dense:
            gain = f"{zeros:.0%} zeros"
            if sparse:
                gain += f", an estimated {dense / sparse:.1f}x fewer steps"
            return Choice("positions", False, POSITION_ROWS, f"{POSITION_ROWS}x1", gain)
        why = f"{zeros:.0%} zeros" + (" in no common tiles" if zeros >= least else "")
        if not _wasteful(lowering, last[-1]) or matrix.shape[0] < lowering.isa.lanes:
            rows = _dense_rows(lowering.isa, positions, matrix)
            return Choice("positions", True, rows, f"{rows}x1", why)
        why += f"; {last[-1]} positions would leave lanes idle"
        return Choice("channels", True, _DENSE_CHANNELS, f"{_DENSE_CHANNELS}x1", why)
    rows = order.tile.outputs if order.lanes == "channels" else 32
    kept = sum(
        np.count_nonzero(matrix[r : r + rows].any(axis=0)) * len(matrix[r : r + rows])
        for r in range(0, matrix.shape[0], rows)
    )
    if zeros >= least and kept < 0.85 * matrix.size:
        return Choice("channels", False, rows, f"{rows}x1", f"{zeros:.0%} zeros")
    return Choice(
        "channels", True, _DENSE_CHANNELS, f"{_DENSE_CHANNELS}x1", f"{zeros:.0%} zeros"
    )


def _dense_rows(isa: Isa, positions: int, matrix: np.ndarray) -> int:
    """Return the height of a dense tile where lanes are positions.

    Each of v vectors of activations is read once for all rows, and each row's weight once for
    all vectors. The weights come from the first-level cache, and so do activations that fit
    there; those that do not are three times as dear, as measured. There are eight tiles at
    least, so that threads can share them evenly.
    """
    outputs, inputs = matrix.shape

    def reads(rows: int) -> float:
        vectors = -(-positions // isa.lanes)
        blocks = -(-vectors // vectors_beside(isa, rows))
        fits = inputs * vectors / blocks * isa.lanes * 4 <= _NEAR_BYTES
        return (0.3 if fits else 1.0) / rows + 0.3 * blocks / vectors

    heights = [rows for rows in (4, 6, 8, 12) if rows == 4 or outputs >= 8 * rows]
    return min(heights, key=reads)


def _wasteful(lowering: Lowering, extent: int) -> bool:
    lanes = lowering.isa.width_for(extent)
    return len(vector_starts(extent, lanes)) * lowering.isa.lanes > 1.15 * extent


def _pack(
    lowering: Lowering, choice: Choice, matrix: np.ndarray, offsets: np.ndarray
) -> PackedTiles:
    if choice.lanes == "positions":
        return pack_for_positions(matrix, offsets, choice.rows, choice.dense)
    return pack_for_channels(matrix, offsets, lowering.isa, choice.rows, choice.dense)


def _split_positions(matrix: np.ndarray, positions: int, packed: PackedTiles) -> bool:
    """Threads share positions where there is more to read of them than of weights."""
    activations = matrix.shape[1] * positions
    return activations > packed.values.size and positions >= 2048


def _together(packed: PackedTiles) -> int:
    """Return how many tiles stay in a cache: a power of two, so that layers share kernels."""
    each = max(1, packed.values.nbytes // max(1, len(packed.table)))
    return 1 << (_CACHED_BYTES // each).bit_length()


def positions_order(node: gs.Node, shape: Sequence[int], channel: int) -> tuple[list[int], int]:
    """Return the axes from the slowest to the fastest, and how many positions come last.

    Lanes run along the last axis of positions that has more than one.
    """
    axes = [a for a in range(len(shape)) if a != channel]
    if node.op == "Conv":
        return sorted([*axes, channel]), len(axes) - 1
    last = max((a for a in axes if shape[a] > 1), default=axes[-1])
    return [*(a for a in axes if a != last), channel, last], 1


def _last_step(source: Window) -> int:
    real = [s for n, s in zip(source.shape, source.strides, strict=True) if n > 1]
    return real[-1] if real else 1


def _repacked(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, problem: Problem
) -> Problem:
    """Copy activations of (positions..., inputs) to (batch..., inputs, positions).

    Later readers of the tensor, the residual for one, take the copy too.
    """
    window = lowering.window(tensor)
    rank = len(window.shape)
    channel = 1 if node.op == "Conv" else rank - 1
    order, run = positions_order(node, window.shape, channel)
    moved = lowering.moved(window, order, tensor.name, run)
    lowering.define(tensor, moved)
    return _flat_problem(moved, channel, problem.matrix, problem.channel)


def along_positions(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, problem: Problem
) -> Problem:
    """Return the problem with the activations' last positions next to each other."""
    if _last_step(problem.source) == 1:
        return problem
    return _repacked(lowering, node, tensor, problem)


def _flat_problem(window: Window, axis: int, matrix: np.ndarray, channel: int) -> Problem:
    others = [a for a in range(len(window.shape)) if a != axis]
    source = Window(
        window.buffer,
        tuple(window.shape[a] for a in others),
        tuple(window.strides[a] for a in others),
        window.offset,
    )
    offsets = np.arange(matrix.shape[1], dtype=np.int32) * window.strides[axis]
    return Problem(matrix, source, offsets, channel)


def problem_of(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, matrix: np.ndarray, edge: float = 0
) -> Problem:
    """Return the problem of a layer that multiplies `tensor`; `edge` is what padding holds."""
    window = lowering.window(tensor)
    if node.op != "Conv":
        if len(window.shape) < 2:
            raise NotLowered("MatMul of a vector")
        last = len(window.shape) - 1
        return _flat_problem(window, last, matrix, last)
    shape = plane_shape(node)
    if shape is None:
        return _flat_problem(window, 1, matrix, 1)
    padded, offsets = pad_planes(lowering, node.name, window, shape, edge)
    out = static_shape(node.outputs[0])
    assert out is not None, f"{node.name} has no static shape"
    columns = shape.phase[1]
    steps = (columns, 1) if len(out) == 4 else (1,)
    source = Window(
        padded.buffer, (out[0], *out[2:]), (padded.strides[0], *steps), padded.offset
    )
    return Problem(matrix, source, offsets, 1)


def scale_window(
    lowering: Lowering,
    node: gs.Node,
    scales: np.ndarray | None,
    shape: tuple[int, ...],
    channel: int,
) -> Window | None:
    """Return what results are multiplied by, in the result's shape, or None."""
    if scales is None:
        return None
    window = lowering.program.constant(f"{node.name}.scales", scales.astype(np.float32))
    strides = tuple(window.strides[0] if a == channel else 0 for a in range(len(shape)))
    return Window(window.buffer, shape, strides, window.offset)


def bias_window(
    lowering: Lowering, node: gs.Node, shape: tuple[int, ...], channel: int
) -> Window | None:
    """Return a layer's bias, scaled and in the result's shape, or None where it has none."""
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    tensor = node.inputs[2]
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    if beta != 1.0:
        if not isinstance(tensor, gs.Constant):
            raise NotLowered("Gemm with beta and a bias that is computed")
        window = lowering.program.constant(tensor.name, tensor.values * np.float32(beta))
    else:
        window = lowering.window(tensor)
    if node.op == "Conv":
        strides = [0] * len(shape)
        strides[channel] = window.strides[0]
        return Window(window.buffer, shape, tuple(strides), window.offset)
    return window.broadcast(shape)
