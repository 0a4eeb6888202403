"""Layers whose activations and weights are 8-bit integers, onto the integer kernel."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tilewright.graph import static_shape
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.elementwise import Chain
from tilewright.targets.kernels.integer import DOTS, INTERLEAVED, SHIFT, IntegerKernel
from tilewright.targets.kernels.tile import PARALLEL_MACS
from tilewright.targets.lower.integer_tiles import PackedIntegers, pack_integers
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
from tilewright.targets.lower.quantized import IntegerLayer
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.sites import Pick, Site, estimated
from tilewright.targets.lower.tiles import dense_steps, sparse_steps
from tilewright.targets.lower.window import Window

_ROWS = 32  # output channels of a tile: as many as pay for packing its activations


def lower_integers(lowering: Lowering, region: Region) -> None:
    """Lower a layer on integers with the elementwise nodes behind it."""
    node = region.anchor
    layer = lowering.integers(node)
    assert layer is not None, f"{node.name} is not quantized"
    matrix = layer.weights.matrix
    shape = static_shape(node.outputs[0])
    assert shape is not None, f"{node.name} has no static shape"
    scales = layer.weights.scales * np.float32(layer.scale)
    problem = problem_of(lowering, node, layer.source, matrix, layer.zero)
    problem = along_positions(lowering, node, layer.source, replace(problem, scales=scales))
    order, run = positions_order(node, shape, problem.channel)
    chain, operands, outputs = chain_behind(lowering, region, problem, order, run)
    call_integers(lowering, region, layer, problem, chain, operands, outputs, lowering.pick)


def call_integers(
    lowering: Lowering,
    region: Region,
    layer: IntegerLayer,
    problem: Problem,
    chain: Chain,
    operands: Sequence[Window],
    outputs: Sequence[Window],
    pick: Pick = estimated,
) -> None:
    """Pack a problem's weights and call the integer kernel on windows of the result's shape.

    `pick` is asked whether to skip zeros, where the node's time is that of this call.
    """
    node, matrix = region.anchor, problem.matrix
    if 2 * 255 * np.abs(matrix.astype(np.int64)).sum(axis=1).max(initial=0) >= 1 << 31:
        raise NotLowered(f"{node.op} whose sums may not fit 32 bits")
    if lowering.isa.dot == "smull" and (matrix == -128).any():
        raise NotLowered(f"{node.op} with weights of -128, whose products overflow 16 bits")
    places = places_of(node, problem, chain, operands, outputs)
    if places.width < lowering.isa.lanes:
        raise NotLowered(f"{node.op} with {places.width} positions in a row")
    packed, dense, reason = _pack(lowering, region, layer, problem, pick)
    kernel = IntegerKernel(
        images=places.images,
        height=places.height,
        width=places.width,
        source=places.source,
        source_dtype=problem.source.dtype,
        most_words=packed.most_words,
        tail=places.tail,
        parallel=places.count * packed.steps >= PARALLEL_MACS,
    )
    parts = [
        lowering.program.constant(f"{node.name}.{part}", getattr(packed, part))
        for part in ("values", "offsets", "table", "rows", "starts")
    ]
    order_of_bytes = lowering.program.constant("interleaved", INTERLEAVED.view(np.int32))
    source = Ref(problem.source.buffer, problem.source.offset)
    lowering.program.call(
        kernel,
        [source, *parts, order_of_bytes, *operands, *outputs],
        [n.name for n in region.nodes],
    )
    density = float(np.count_nonzero(matrix) / matrix.size)
    lowering.program.layers.append(
        LayerDecision(
            name=node.name,
            op=node.op,
            shape=(matrix.shape[0], matrix.shape[1], places.count),
            tile=f"{_ROWS}x1",
            density=density,
            bits=8,
            stored_bytes=packed.stored_bytes(),
            kernel=f"int8 {'dense' if dense else 'sparse'}, lanes = positions",
            reason=reason,
        )
    )


def _pack(
    lowering: Lowering, region: Region, layer: IntegerLayer, problem: Problem, pick: Pick
) -> tuple[PackedIntegers, bool, str]:
    """Return the packed weights, whether zeros are computed like any other weight, and why."""
    matrix = problem.matrix
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    dense = bool(zeros < least) or sparse_steps(matrix, _ROWS) >= dense_steps(matrix, _ROWS)
    described = (
        f"{'+'.join(n.op for n in region.nodes)} int8 {matrix.shape[0]} x {matrix.shape[1]} "
        f"at {' x '.join(map(str, problem.source.shape))}, {zeros:.2f} zeros"
    )
    ways = ("dense", "sparse") if dense else ("sparse", "dense")
    site = Site("layer", described, (region.anchor.name,))
    picked = pick(site, ways if zeros else ways[:1])
    dense = ways[picked.number] == "dense"
    shift = {("int8", "uint8"): SHIFT, ("uint8", "int8"): -SHIFT}
    kinds = (np.dtype(layer.source.dtype).name, DOTS[lowering.isa.dot].activations)
    zero = layer.zero + shift.get(kinds, 0)
    packed = pack_integers(matrix, problem.offsets, lowering.isa.dot, _ROWS, dense, zero)
    return packed, dense, "; ".join(filter(None, (f"{zeros:.0%} zeros", picked.measured)))
