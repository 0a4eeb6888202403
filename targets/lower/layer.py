"""Layers (Conv, Gemm, MatMul by a constant) onto the tile kernel."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tilewright.graph import static_shape
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.elementwise import Chain
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.kernels.tile import PARALLEL_MACS, TileKernel, vectors_beside
from tilewright.targets.lower.choose import NEAR_BYTES, Choice, choose
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.problem import (
    Problem,
    along_positions,
    chain_behind,
    places_of,
    positions_order,
    problem_of,
)
from tilewright.targets.lower.program import Ref
from tilewright.targets.lower.quantized import lowered_layer, small_weights
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.tiles import (
    PackedTiles,
    pack_for_channels,
    pack_for_positions,
)
from tilewright.targets.lower.window import Window

_WORD = 4  # int8 weights
_CACHED_BYTES = 1 << 18  # of weights that stay in a second-level cache, beside activations
_STREAMED_BYTES = 1 << 20  # of activations that do not stay there


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
    choice = choose(lowering, region, problem, shape)
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
        split_positions=choice.share_positions,
        together=_together(packed),
        weights=matrix.dtype.name,
        far=_far(lowering.isa, choice, matrix.shape[1], places.count),
        streamed=matrix.shape[1] * places.count * 4 > _STREAMED_BYTES,
    )
    program = lowering.program
    weights = [
        program.constant(f"{node.name}.{part}", getattr(packed, part))
        for part in ("values", "offsets", "table", "rows", "groups")
    ]
    source = Ref(problem.source.buffer, problem.source.offset)
    nodes = [n.name for n in region.nodes]
    program.call(kernel, [source, *weights, *operands, *outputs], nodes)
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


def _pack(
    lowering: Lowering, choice: Choice, matrix: np.ndarray, offsets: np.ndarray
) -> PackedTiles:
    if choice.lanes == "positions":
        return pack_for_positions(matrix, offsets, choice.rows, choice.dense)
    return pack_for_channels(matrix, offsets, lowering.isa, choice.rows, choice.dense)


def _far(isa: Isa, choice: Choice, inputs: int, positions: int) -> bool:
    """Say whether the activations of a block leave the first-level cache."""
    vectors = min(vectors_beside(isa, choice.rows), -(-positions // isa.lanes))
    return choice.lanes == "positions" and inputs * vectors * isa.lanes * 4 > NEAR_BYTES


def _together(packed: PackedTiles) -> int:
    """Return how many tiles stay in a cache: a power of two, so that layers share kernels."""
    each = max(1, packed.values.nbytes // max(1, len(packed.table)))
    return 1 << (_CACHED_BYTES // each).bit_length()
