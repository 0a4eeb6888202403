"""MatMulNBits: onto the kernel for 4-bit weights, or in floats where positions are many."""

from dataclasses import replace

import numpy as np

from tilewright.graph import static_shape
from tilewright.nbits import MIDDLE, UNSUPPORTED, BlockWeights, block_weights
from tilewright.protocol import LayerDecision
from tilewright.targets.kernels.nibbles import NibbleKernel
from tilewright.targets.kernels.tile import PARALLEL_MACS
from tilewright.targets.lower.layer import run_layer
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.problem import chain_behind, places_of, problem_of
from tilewright.targets.lower.program import Ref
from tilewright.targets.lower.regions import Region

_VECTORS = 4  # of channels in a tile: as many sums hide the latency of one position's


def lower_nibbles(lowering: Lowering, region: Region) -> None:
    """Lower a MatMulNBits with the elementwise nodes behind it."""
    node = region.anchor
    weights = block_weights(node)
    if weights is None:
        raise NotLowered(f"{node.op} {UNSUPPORTED}")
    shape = static_shape(node.outputs[0])
    assert shape is not None, f"{node.name} has no static shape"
    outputs, lanes = len(weights.values), lowering.isa.lanes
    positions = int(np.prod(shape[:-1], dtype=np.int64))
    vectors = min(_VECTORS, outputs // lanes)
    # Reading floats pays where they serve many positions; the kernel takes whole blocks.
    many = lowering.target.order_for(positions, "w4").lanes == "positions"
    if many or not vectors or weights.inputs % weights.block:
        matrix = weights.dequantized()
        run_layer(lowering, region, problem_of(lowering, node, node.inputs[0], matrix))
        return
    problem = problem_of(lowering, node, node.inputs[0], weights.values)
    order = [*(a for a in range(len(shape)) if a != problem.channel), problem.channel]
    chain, operands, windows = chain_behind(lowering, region, problem, order, 0)
    places = places_of(node, problem, chain, operands, windows)
    blocks = weights.scales.shape[1]
    zeros = bool((weights.zeros != MIDDLE).any())
    halves = vectors % 2 == 0 and _fit_halves(weights, zeros)
    kernel = NibbleKernel(
        outputs=outputs,
        blocks=blocks,
        block=weights.block,
        vectors=vectors,
        halves=halves,
        zeros=zeros,
        images=places.images,
        height=places.height,
        width=places.width,
        source=replace(places.source, n=_step(problem.offsets)),
        tail=places.tail,
        parallel=places.count * weights.values.size >= PARALLEL_MACS,
    )
    packed = pack_nibbles(weights, lanes, vectors, halves, zeros)
    values = lowering.program.constant(f"{node.name}.nibbles", packed)
    source = Ref(problem.source.buffer, problem.source.offset)
    nodes = [n.name for n in region.nodes]
    lowering.program.call(kernel, [source, values, *operands, *windows], nodes)
    lowering.program.layers.append(
        LayerDecision(
            name=node.name,
            op=node.op,
            shape=(outputs, weights.inputs, places.count),
            tile=f"{vectors * lanes}x1",
            density=1.0,
            bits=4,
            stored_bytes=packed.nbytes,
            kernel=f"int4 in blocks of {weights.block}, lanes = channels",
            reason=f"{positions} positions",
        )
    )


def _step(offsets: np.ndarray) -> int:
    """Return how far apart a position's activations lie."""
    return int(offsets[1] - offsets[0])


def pack_nibbles(
    weights: BlockWeights, lanes: int, vectors: int, halves: bool, zeros: bool
) -> np.ndarray:
    """Return the words of tiles, shown as float32: see NibbleKernel."""
    outputs, blocks = weights.scales.shape
    rows = lanes * vectors
    cells = weights.values.reshape(outputs, blocks, -1, 8).astype(np.uint32)
    places = np.arange(8, dtype=np.uint32) * 4
    words = np.bitwise_or.reduce(cells << places, axis=3).view(np.float32)
    factors = [weights.scales]
    if zeros:
        factors.append(-weights.scales * weights.zeros.astype(np.float32))

    def header(factor: np.ndarray, start: int) -> np.ndarray:
        part = factor[start : start + rows].T  # (blocks, rows)
        if not halves:
            return part.astype(np.float32)
        pairs = part.reshape(blocks, vectors // 2, 2, lanes).transpose(0, 1, 3, 2)
        small = np.ascontiguousarray(pairs, np.float16)
        return small.view(np.float32).reshape(blocks, rows // 2)

    tiles = []
    for start in (min(first, outputs - rows) for first in range(0, outputs, rows)):
        tile = words[start : start + rows].transpose(1, 2, 0).reshape(blocks, -1)
        parts = [*(header(factor, start) for factor in factors), tile]
        tiles.append(np.concatenate(parts, axis=1).reshape(-1))
    return np.concatenate(tiles)


def _fit_halves(weights: BlockWeights, zeros: bool) -> bool:
    """Say whether no scale, and no scale times a zero point, loses anything as a half float."""
    factors = [weights.scales]
    if zeros:
        factors.append(weights.scales * weights.zeros.astype(np.float32))
    with np.errstate(over="ignore"):
        return all(np.array_equal(f.astype(np.float16).astype(np.float32), f) for f in factors)
