"""Tile OBS: which tiles of a weight matrix to drop, and what the rest must become.

A layer computes Y = W X, W of (outputs, inputs), X of (inputs, columns). With the Hessian
H = X X^T + d I, setting the inputs B of some rows to zero and refitting those rows costs
trace(W_B (Hinv_BB)^-1 W_B^T), and the refit is W -= W_B (Hinv_BB)^-1 Hinv_B (Hassibi & Stork,
"Optimal Brain Surgeon", 1993). All rows of a tile share one mask, so they share one Hinv:
this is ExactOBS (Frantar & Alistarh, "Optimal Brain Compression", 2022) with a tile for a row.

Eliminating B from Hinv is one step of a Cholesky factorisation whose pivots are the cheapest
blocks. Hence the mask search is a pivoted Cholesky, with the updates of Hinv delayed and
applied many at once; the search is greedy, exact up to the rounding of float32 for up to
`_ROUNDS` eliminations, and takes the few cheapest blocks at a time beyond that. The values do
not depend on that rounding: they are solved for afterwards, in float64, on the
support that the search found.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from tilewright.layout import Tile
from tilewright.threads import spread_over_cores

# Pivots gathered before Hinv is updated: one matrix product instead of so many outer ones.
_DELAYED = 128
# Rounds of elimination at least: from twice as many blocks to drop on, two go in a round.
_ROUNDS = 128
# Copies of Hinv worked on at a time, in bytes: enough to share numpy's calls among tiles.
_BATCH_BYTES = 32 << 20


def damped(hessian: np.ndarray, damp: float) -> np.ndarray:
    """Return H + d I, d being `damp` times the mean of H's diagonal (or 1 where H is zero)."""
    d = damp * float(np.mean(np.diag(hessian)))
    return hessian + (d if d > 0 else 1.0) * np.eye(len(hessian))


def asymmetric_target(
    weights: np.ndarray, cross: np.ndarray, gram: np.ndarray, hessian: np.ndarray
) -> np.ndarray:
    """Return the dense weights V that make up for the errors in a layer's input.

    `cross` is X Xhat^T and `gram` is Xhat Xhat^T, of the dense and of the compressed network's
    input; `hessian` is the damped `gram`, d I + gram. V minimises
    |W X - V Xhat|^2 + d |V - W|^2, so V = (W cross + d W) hessian^-1.
    """
    wide = weights.astype(np.float64)
    moved = wide @ cross + wide @ (hessian - gram)
    return np.asarray(cho_solve(cho_factor(hessian, lower=True), moved.T).T)


def prune(weights: np.ndarray, hessian: np.ndarray, tile: Tile, sparsity: float) -> np.ndarray:
    """Return the weights with `sparsity` of every row of tiles at zero, the rest refitted.

    `weights` is (outputs, inputs), `hessian` the damped (inputs, inputs). A ragged last tile
    is smaller. Result: float64.
    """
    kept = tile_masks(weights, np.linalg.inv(hessian), tile, sparsity)
    return refit(weights, hessian, tile, kept)


def tile_masks(
    weights: np.ndarray, inverse: np.ndarray, tile: Tile, sparsity: float
) -> np.ndarray:
    """Choose tiles by greedy elimination. Result: True where kept, (row tiles, column blocks).

    `inverse` is the inverse of the damped Hessian. Each row of tiles loses
    round(sparsity * column blocks), but for one that it keeps. Ties go to the lower column.
    """
    rows, columns = _padded(weights.astype(np.float32), tile)
    blocks = columns // tile.inputs
    removed = min(round(sparsity * blocks), blocks - 1)
    start = np.eye(columns, dtype=np.float32)
    start[: len(inverse), : len(inverse)] = inverse / np.mean(np.diag(inverse))
    kept = np.ones((len(rows), blocks), dtype=bool)
    if not removed:
        return kept
    batch = max(1, _BATCH_BYTES // start.nbytes)
    order = spread_over_cores(
        lambda part: _elimination_order(part, start, tile.inputs, removed),
        [rows[first : first + batch] for first in range(0, len(rows), batch)],
    )
    np.put_along_axis(kept, np.concatenate(order), False, axis=1)
    return kept


def refit(weights: np.ndarray, hessian: np.ndarray, tile: Tile, kept: np.ndarray) -> np.ndarray:
    """Return the best weights on a support: argmin_V (V - W) H (V - W)^T, V zero elsewhere.

    `kept` is (row tiles, column blocks). Result: float64.
    """
    wide = weights.astype(np.float64)
    right = wide @ hessian
    result = np.zeros_like(wide)

    def solve(index: int) -> None:
        support = np.flatnonzero(np.repeat(kept[index], tile.inputs)[: wide.shape[1]])
        if not len(support):
            return
        part = slice(index * tile.outputs, (index + 1) * tile.outputs)
        # LU where Cholesky would do: numpy's lets the other threads run meanwhile.
        solved = np.linalg.solve(hessian[np.ix_(support, support)], right[part, support].T)
        result[part, support] = solved.T

    spread_over_cores(solve, range(len(kept)))
    return result


def smallest_tiles(weights: np.ndarray, tile: Tile, sparsity: float) -> np.ndarray:
    """Choose tiles by their squared sum. Result: True where kept, (row tiles, column blocks).

    The same count for every row of tiles as `tile_masks`; it equals that for H = I.
    """
    rows, columns = _padded(weights.astype(np.float64), tile)
    blocks = columns // tile.inputs
    scores = np.square(rows).sum(axis=1).reshape(len(rows), blocks, tile.inputs).sum(axis=2)
    removed = min(round(sparsity * blocks), blocks - 1)
    order = np.argsort(scores, axis=1, kind="stable")[:, :removed]
    kept = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(kept, order, False, axis=1)
    return kept


def spread(kept: np.ndarray, tile: Tile, shape: tuple[int, int]) -> np.ndarray:
    """Widen a mask of tiles to a mask of weights, (outputs, inputs)."""
    wide = np.repeat(np.repeat(kept, tile.outputs, axis=0), tile.inputs, axis=1)
    return wide[: shape[0], : shape[1]]


def _padded(weights: np.ndarray, tile: Tile) -> tuple[np.ndarray, int]:
    outputs, inputs = weights.shape
    tiles, blocks = -(-outputs // tile.outputs), -(-inputs // tile.inputs)
    padded = np.zeros((tiles * tile.outputs, blocks * tile.inputs), dtype=weights.dtype)
    padded[:outputs, :inputs] = weights
    return padded.reshape(tiles, tile.outputs, -1), padded.shape[1]


def _elimination_order(
    weights: np.ndarray, inverse: np.ndarray, width: int, steps: int
) -> np.ndarray:
    """Return the column blocks that greedy OBS removes from each tile, in order.

    `weights` is (tiles, rows, columns), `inverse` (columns, columns) common to all tiles.
    Result: (tiles, steps).
    """
    tiles = len(weights)
    every = np.arange(tiles)
    w = weights.copy()
    # Working set: the columns still in play, tile by tile, and Hinv on them.
    alive = np.tile(np.arange(inverse.shape[0] // width), (tiles, 1))
    a = np.tile(inverse, (tiles, 1, 1))
    order = np.empty((tiles, steps), dtype=np.int64)
    together = max(1, steps // _ROUNDS)
    step = 0
    while step < steps:
        count = min(_DELAYED // width or 1, steps - step)
        blocks = alive.shape[1]
        gone = np.zeros((tiles, blocks), dtype=bool)
        u = np.empty((tiles, count * width, blocks * width), dtype=np.float32)
        d = _diagonal_blocks(a, width)
        for j in range(0, count, together):
            scores = _scores(w, d)
            scores[gone] = np.inf
            pivots = _smallest(scores, min(together, count - j))
            gone[every[:, None], pivots] = True
            number = pivots.shape[1]
            order[:, step + j : step + j + number] = alive[every[:, None], pivots]
            done, fresh = u[:, : j * width], u[:, j * width : (j + number) * width]
            at = (pivots[:, :, None] * width + np.arange(width)).reshape(tiles, -1)
            if at.shape[1] == 1:
                _eliminate_column(w, a, done, fresh, at[:, 0])
            else:
                _eliminate_columns(w, a, done, fresh, at)
            by_block = fresh.reshape(tiles, number * width, blocks, width)
            d -= np.einsum("tanx,tany->tnxy", by_block, by_block)
        step += count
        if step < steps:
            alive, w, a = _without(alive, w, a, u, gone, width)
    return order


def _eliminate_column(
    w: np.ndarray, a: np.ndarray, done: np.ndarray, fresh: np.ndarray, pivot: np.ndarray
) -> None:
    """Take one column a tile out of `w`; write its row of the Cholesky factor to `fresh`."""
    every = np.arange(len(pivot))
    row = a[every, pivot]
    if done.shape[1]:
        row -= (done[every, None, :, pivot] @ done)[:, 0]
    root = 1 / np.sqrt(np.maximum(row[every, pivot], 1e-30))
    row *= root[:, None]
    fresh[:, 0] = row
    w -= (w[every, :, pivot] * root[:, None])[:, :, None] * row[:, None, :]


def _eliminate_columns(
    w: np.ndarray, a: np.ndarray, done: np.ndarray, fresh: np.ndarray, at: np.ndarray
) -> None:
    """Do the same with several columns of each tile, `at` (tiles, rows of `fresh`)."""
    row = a[np.arange(len(at))[:, None], at]
    row -= np.take_along_axis(done, at[:, None], axis=2).transpose(0, 2, 1) @ done
    root = np.linalg.inv(np.linalg.cholesky(np.take_along_axis(row, at[:, None], axis=2)))
    fresh[:] = root @ row
    w -= (np.take_along_axis(w, at[:, None], axis=2) @ root.transpose(0, 2, 1)) @ fresh


def _smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` smallest scores of each tile, in place order."""
    if count == 1:
        return np.asarray(scores.argmin(axis=1)[:, None])
    found = np.argpartition(scores, count - 1, axis=1)[:, :count]
    return np.sort(found, axis=1)


def _scores(w: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return trace(W_B (Hinv_BB)^-1 W_B^T) for each block B, (tiles, blocks)."""
    tiles, blocks, width, _ = d.shape
    if width == 1:
        # Rounding may push the diagonal of a removed column to zero or below.
        return np.asarray(np.einsum("trk,trk->tk", w, w) / np.maximum(d[:, :, 0, 0], 1e-30))
    by_block = w.reshape(tiles, -1, blocks, width).transpose(0, 2, 3, 1)
    # A removed block may have become singular; it is out of the running anyway.
    safe = d + 1e-12 * np.eye(width, dtype=np.float32)
    return np.asarray((by_block * np.linalg.solve(safe, by_block)).sum(axis=(2, 3)))


def _diagonal_blocks(a: np.ndarray, width: int) -> np.ndarray:
    tiles, columns, _ = a.shape
    blocks = columns // width
    split = a.reshape(tiles, blocks, width, blocks, width)
    return np.array(np.einsum("tnxny->tnxy", split))


def _without(
    alive: np.ndarray,
    w: np.ndarray,
    a: np.ndarray,
    u: np.ndarray,
    gone: np.ndarray,
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply the delayed updates, Hinv - U^T U, and drop the columns that are gone."""
    tiles = len(alive)
    left = np.nonzero(~gone)[1].reshape(tiles, -1)
    columns = (left[:, :, None] * width + np.arange(width)).reshape(tiles, -1)
    smaller = np.empty((tiles, columns.shape[1], columns.shape[1]), dtype=np.float32)
    for t, keep in enumerate(columns):
        np.take(a[t, keep], keep, axis=1, out=smaller[t], mode="clip")
        rest = u[t].take(keep, axis=1)
        # numpy lets other threads run meanwhile; scipy's BLAS does not. The copy is because of
        # a matrix times its own transpose numpy makes a syrk, which is slower at these sizes.
        smaller[t] -= rest.T.copy() @ rest
    w = np.take_along_axis(w, columns[:, None, :], axis=2)
    return np.take_along_axis(alive, left, axis=1), w, smaller
