"""Layers (Conv, Gemm, MatMul by a constant) onto the tile kernel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.elementwise import Chain
from tilewright.targets.kernels.pen import Isa, vector_starts
from tilewright.targets.kernels.tile import PARALLEL_MACS, TileKernel, vectors_beside
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.problem import (
    Problem,
    along_positions,
    chain_behind,
    places_of,
    positions_order,
    problem_of,
)
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
_SHARED = 400  # positions from which on threads may share them
_NEAR_BYTES = 1 << 15  # of activations that stay in a first-level cache, beside weights
_DENSE_CHANNELS = 64  # and of a dense tile where lanes are channels


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
    chain, operands, outputs = chain_behind(lowering, region, problem, order, run)
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
    node, matrix = region.anchor, problem.matrix
    places = places_of(node, problem, chain, operands, outputs)
    packed = _pack(lowering, choice, matrix, problem.offsets)
    kernel = TileKernel(
        lanes=choice.lanes,
        heights=packed.heights,
        images=places.images,
        height=places.height,
        width=places.width,
        source=places.source,
        tail=places.tail,
        parallel=places.count * packed.steps >= PARALLEL_MACS,
        split_positions=_split_positions(matrix, places.count),
        together=_together(packed),
        weights=matrix.dtype.name,
    )
    program = lowering.program
    weights = [
        program.constant(f"{node.name}.{part}", getattr(packed, part))
        for part in ("values", "offsets", "table", "rows", "groups")
    ]
    source = Ref(problem.source.buffer, problem.source.offset)
    nodes = [n.name for n in region.nodes]
    program.call(kernel, [source, *weights, Ref(LAUNCH), *operands, *outputs], nodes)
    program.layers.append(
        LayerDecision(
            name=node.name,
            op=node.op,
            shape=(matrix.shape[0], matrix.shape[1], places.count),
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
    matrix = problem.matrix
    positions = math.prod(shape) // matrix.shape[0]
    order = lowering.target.order_for(positions)
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    extent = _run_of_positions(node, problem)
    if order.lanes == "positions" and extent > 1:
        sparse, dense = sparse_steps(matrix, POSITION_ROWS), dense_steps(matrix, POSITION_ROWS)
        if zeros >= least and sparse < dense:
            gain = f"{zeros:.0%} zeros"
            if sparse:
                gain += f", an estimated {dense / sparse:.1f}x fewer steps"
            return Choice("positions", False, POSITION_ROWS, f"{POSITION_ROWS}x1", gain)
        why = f"{zeros:.0%} zeros" + (" in no common tiles" if zeros >= least else "")
        if not _wasteful(lowering, extent) or matrix.shape[0] < lowering.isa.lanes:
            rows = _dense_rows(lowering.isa, positions, matrix)
            return Choice("positions", True, rows, f"{rows}x1", why)
        why += f"; {extent} positions would leave lanes idle"
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
    least, so that threads can share them evenly, where they do not share positions.
    """
    outputs, inputs = matrix.shape

    def reads(rows: int) -> float:
        vectors = -(-positions // isa.lanes)
        blocks = -(-vectors // vectors_beside(isa, rows))
        fits = inputs * vectors / blocks * isa.lanes * 4 <= _NEAR_BYTES
        return (0.3 if fits else 1.0) / rows + 0.3 * blocks / vectors

    shared = _split_positions(matrix, positions)
    heights = [
        rows
        for rows in (4, 6, 8, 12)
        if rows == 4 or outputs >= 8 * rows or (shared and not outputs % rows)
    ]
    return min(heights, key=reads)


def _run_of_positions(node: gs.Node, problem: Problem) -> int:
    """Return how many positions lanes may run along: a whole map, or a row of a padded one.

    A convolution's do not run over images, another layer's not over batches.
    """
    source = problem.source
    if node.op == "Conv":
        return collapse(source.shape[1:], [source.strides[1:]])[0][-1]
    return next((n for n in reversed(source.shape) if n > 1), 1)


def _wasteful(lowering: Lowering, extent: int) -> bool:
    lanes = lowering.isa.width_for(extent)
    return len(vector_starts(extent, lanes)) * lowering.isa.lanes > 1.35 * extent


def _pack(
    lowering: Lowering, choice: Choice, matrix: np.ndarray, offsets: np.ndarray
) -> PackedTiles:
    if choice.lanes == "positions":
        return pack_for_positions(matrix, offsets, choice.rows, choice.dense)
    return pack_for_channels(matrix, offsets, lowering.isa, choice.rows, choice.dense)


def _split_positions(matrix: np.ndarray, positions: int) -> bool:
    """Threads share positions where there is more to read of them than of weights."""
    return positions >= _SHARED and matrix.shape[1] * positions > int(np.count_nonzero(matrix))


def _together(packed: PackedTiles) -> int:
    """Return how many tiles stay in a cache: a power of two, so that layers share kernels."""
    each = max(1, packed.values.nbytes // max(1, len(packed.table)))
    return 1 << (_CACHED_BYTES // each).bit_length()
