"""How a layer may run on the tile kernel, in the order of estimated times."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.target import LaneOrder
from tilewright.targets.kernels.pen import Isa, vector_starts
from tilewright.targets.kernels.tile import PARALLEL_MACS, vectors_beside
from tilewright.targets.lower.lowering import Lowering
from tilewright.targets.lower.problem import Problem
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.sites import Site
from tilewright.targets.lower.tiles import dense_steps, sparse_steps
from tilewright.targets.lower.window import collapse

POSITION_ROWS = 4  # output channels of a tile where lanes are positions
_DENSE_CHANNELS = 64  # and of a dense tile where lanes are channels
_SHARED = 400  # positions from which on threads may share them
NEAR_BYTES = 1 << 15  # of activations that stay in a first-level cache, beside weights
_MUCH = 0.6  # of the work, left where lanes are positions although those are few
_WORTH = 0.85  # of the columns that tiles may keep where lanes are channels


@dataclass(frozen=True)
class Choice:
    """How a layer runs, and why. Threads share its tiles, or its positions.

    `work` is estimated, relative to a dense kernel's.
    """

    lanes: str
    dense: bool
    rows: int
    share_positions: bool
    reason: str
    work: float = 1.0

    @property
    def tile(self) -> str:
        """Outputs x inputs of a tile."""
        return f"{self.rows}x1"

    @property
    def label(self) -> str:
        """The name of this way among others with the same lanes."""
        shared = "positions" if self.share_positions else "tiles"
        return f"{'dense' if self.dense else 'sparse'} {self.tile}, threads share {shared}"


def choose(
    lowering: Lowering,
    region: Region,
    problem: Problem,
    shape: tuple[int, ...],
    lanes: str | None = None,
) -> Choice:
    """Choose lane order, tile and sparse or dense for a layer with results of `shape`.

    `lanes` fixes the lane order where the caller leaves no choice of it.
    """
    node, matrix = region.anchor, problem.matrix
    positions = math.prod(shape) // matrix.shape[0]
    order = lowering.target.order_for(positions)
    extent = _run_of_positions(node, problem)
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    many = order.lanes == "positions" and extent > 1
    if lanes == "positions" or many or _skips_much(lowering, matrix, extent):
        ways = _along_positions(lowering, problem, positions)
        idle = _wasteful(lowering.isa, extent) and matrix.shape[0] >= lowering.isa.lanes
        if ways[0].dense and idle and lanes is None:
            reason = f"{ways[0].reason}; {extent} positions would leave lanes idle"
            shares = _positions_shared(matrix, positions)
            ways = [Choice("channels", True, _DENSE_CHANNELS, shares, reason)]
    else:
        ways = list(_along_channels(lowering, problem, positions, order))
    if lanes is not None:
        return ways[0]  # its node has kernels beside this one, which times would not tell apart
    window = [*node.attrs.get("kernel_shape", ()), *node.attrs.get("strides", ())]
    described = (
        f"{'+'.join(n.op for n in region.nodes)} {matrix.dtype} {matrix.shape[0]} x "
        f"{matrix.shape[1]} at {' x '.join(map(str, problem.source.shape))}, window {window}, "
        f"{zeros:.2f} zeros, {min(way.work for way in ways):.2f} of the work left, "
        f"lanes = {ways[0].lanes}"
    )
    picked = lowering.pick(Site("layer", described, (node.name,)), [way.label for way in ways])
    way = ways[picked.number]
    return replace(way, reason="; ".join(filter(None, (way.reason, picked.measured))))


def _skips_much(lowering: Lowering, matrix: np.ndarray, extent: int) -> bool:
    """Say whether a few positions are better off with lanes of their own.

    With a vector of them, what is skipped is weights that would have to be read; 8-bit weights
    would become four times as large.
    """
    few = matrix.dtype == np.int8 or extent < lowering.isa.lanes
    if few or np.count_nonzero(matrix) > _MUCH * matrix.size:
        return False
    sparse, dense = sparse_steps(matrix, POSITION_ROWS), dense_steps(matrix, POSITION_ROWS)
    return sparse < _MUCH * dense


def _along_positions(lowering: Lowering, problem: Problem, positions: int) -> list[Choice]:
    """Return the ways with lanes = positions, the estimated fastest first."""
    matrix = problem.matrix
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    sparse, dense = sparse_steps(matrix, POSITION_ROWS), dense_steps(matrix, POSITION_ROWS)
    shares = _positions_shared(matrix, positions)
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    gain = f"{zeros:.0%} zeros"
    if zeros >= least and sparse:
        gain += f", an estimated {dense / sparse:.1f}x fewer steps"
    skipping = Choice("positions", False, POSITION_ROWS, shares, gain, sparse / dense)
    heights = _dense_heights(lowering.isa, positions, matrix, shares)
    none = f"{zeros:.0%} zeros" + (" in no common tiles" if zeros >= least else "")
    computing = [Choice("positions", True, rows, shares, none) for rows in heights]
    if zeros >= least and sparse < dense:
        ways = [skipping, *computing]
    elif zeros:
        ways = [computing[0], skipping, *computing[1:]]
    else:
        ways = computing
    if positions * min(sparse, dense) < PARALLEL_MACS:
        return ways
    # Next to the estimate, what differs from it in one thing; then the rest.
    other = [replace(way, share_positions=not shares) for way in ways]
    return [ways[0], other[0], *ways[1:2], *other[1:2], *ways[2:], *other[2:]]


def _along_channels(
    lowering: Lowering, problem: Problem, positions: int, order: LaneOrder
) -> Iterator[Choice]:
    """Yield the ways with lanes = channels, the estimated fastest first."""
    matrix = problem.matrix
    zeros = 1 - np.count_nonzero(matrix) / matrix.size
    reason = f"{zeros:.0%} zeros"
    rows = order.tile.outputs if order.lanes == "channels" else 32
    kept = sum(
        np.count_nonzero(matrix[r : r + rows].any(axis=0)) * len(matrix[r : r + rows])
        for r in range(0, matrix.shape[0], rows)
    )
    least = float(lowering.target.settings.get("min_sparse_share", 0.0))
    shares = _positions_shared(matrix, positions)
    dense = Choice("channels", True, _DENSE_CHANNELS, shares, reason)
    sparse = Choice("channels", False, rows, shares, reason, kept / matrix.size)
    if zeros >= least and kept < _WORTH * matrix.size:
        yield sparse
        yield dense
    else:
        yield dense
        yield replace(dense, rows=32)
        if kept < matrix.size:
            yield sparse


def _positions_shared(matrix: np.ndarray, positions: int) -> bool:
    """Threads share positions where there is more to read of them than of weights."""
    return positions >= _SHARED and matrix.shape[1] * positions > int(np.count_nonzero(matrix))


def _dense_heights(isa: Isa, positions: int, matrix: np.ndarray, shares: bool) -> list[int]:
    """Return heights of a dense tile where lanes are positions, the best estimate first.

    Each of v vectors of activations is read once for all rows, and each row's weight once for
    all vectors. The weights come from the first-level cache, and so do activations that fit
    there; those that do not are three times as dear, as measured. There are eight tiles at
    least, so that threads can share them evenly, where they do not share positions.
    """
    outputs, inputs = matrix.shape

    def reads(rows: int) -> float:
        vectors = -(-positions // isa.lanes)
        blocks = -(-vectors // vectors_beside(isa, rows))
        fits = inputs * vectors / blocks * isa.lanes * 4 <= NEAR_BYTES
        return (0.3 if fits else 1.0) / rows + 0.3 * blocks / vectors

    heights = [
        rows
        for rows in (4, 6, 8, 12)
        if rows == 4 or outputs >= 8 * rows or (shares and not outputs % rows)
    ]
    return sorted(heights, key=reads)


def _run_of_positions(node: gs.Node, problem: Problem) -> int:
    """Return how many positions lanes may run along: a whole map, or a row of a padded one.

    A convolution's do not run over images, another layer's not over batches.
    """
    source = problem.source
    if node.op == "Conv":
        return collapse(source.shape[1:], [source.strides[1:]])[0][-1]
    return next((n for n in reversed(source.shape) if n > 1), 1)


def _wasteful(isa: Isa, extent: int) -> bool:
    lanes = isa.width_for(extent)
    return len(vector_starts(extent, lanes)) * isa.lanes > 1.35 * extent
