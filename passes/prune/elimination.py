"""Greedy elimination: in which order tiles leave a layer, and what each of them costs.

Eliminating the inputs B of a row of tiles from Hinv is one step of a Cholesky factorisation
whose pivots are the cheapest blocks (obs.py says why). Hence the search is a pivoted Cholesky,
with the updates of Hinv delayed and applied many at once. It is greedy up to rounding for up
to `_ROUNDS` eliminations, and takes the few cheapest blocks at a time beyond that.
"""

from typing import NamedTuple

import numpy as np

from tilewright.layout import Groups, Tile
from tilewright.threads import spread_over_cores

# Pivots gathered before Hinv is updated: one matrix product instead of so many outer ones. At
# least so many, and this share of the columns: the larger Hinv, the dearer it is to go over it.
_DELAYED = 64
_SHARE = 6
# Rounds of elimination at least: from twice as many blocks to drop on, two go in a round.
_ROUNDS = 128
# Copies of Hinv worked on at a time, in bytes: enough to share numpy's calls among tiles.
_BATCH_BYTES = 32 << 20


class Elimination(NamedTuple):
    """Column blocks in the order in which they left each row of tiles, and what each cost.

    Both are (row tiles, steps). The first k losses of a row sum up to its output error
    trace((V - W) H (V - W)^T) without the first k blocks, refitted.
    """

    order: np.ndarray
    losses: np.ndarray


def eliminate(
    weights: np.ndarray,
    inverse: np.ndarray,
    tile: Tile,
    steps: int,
    groups: Groups | None = None,
) -> Elimination:
    """Take the cheapest column block out of each row of tiles, `steps` times.

    `weights` is (outputs, inputs), `inverse` that of the damped Hessian. The arithmetic is that
    of the weights' dtype, float32 or float64. A ragged last tile is smaller. Ties go to the
    lower column. `groups` must be able to lose `steps` blocks in all.
    """
    rows, columns = padded(weights, tile)
    if groups is None:
        blocks = columns // tile.inputs
        groups = Groups(np.zeros(blocks, dtype=np.int64), np.array([steps]))
    scale = float(np.mean(np.diag(inverse)))  # float32 has no range to waste
    start = np.eye(columns, dtype=weights.dtype)
    start[: len(inverse), : len(inverse)] = inverse / scale
    batch = max(1, _BATCH_BYTES // start.nbytes)
    found = spread_over_cores(
        lambda part: _eliminate_batch(part, start, tile.inputs, steps, groups),
        [rows[first : first + batch] for first in range(0, len(rows), batch)],
    )
    order, losses = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Elimination(order, losses / scale)


def padded(weights: np.ndarray, tile: Tile) -> tuple[np.ndarray, int]:
    """Return whole tiles, (row tiles, tile.outputs, columns), and their number of columns."""
    outputs, inputs = weights.shape
    tiles, blocks = -(-outputs // tile.outputs), -(-inputs // tile.inputs)
    whole = np.zeros((tiles * tile.outputs, blocks * tile.inputs), dtype=weights.dtype)
    whole[:outputs, :inputs] = weights
    return whole.reshape(tiles, tile.outputs, -1), whole.shape[1]


def _eliminate_batch(
    weights: np.ndarray, inverse: np.ndarray, width: int, steps: int, groups: Groups
) -> Elimination:
    """Do so for some tiles, (tiles, rows, columns), with a scaled Hinv common to all."""
    tiles = len(weights)
    every = np.arange(tiles)
    w = weights.copy()
    # Working set: the columns still in play, tile by tile, and Hinv on them.
    alive = np.tile(np.arange(inverse.shape[0] // width), (tiles, 1))
    a = np.tile(inverse, (tiles, 1, 1))
    order = np.empty((tiles, steps), dtype=np.int64)
    losses = np.empty((tiles, steps), dtype=w.dtype)
    room = np.tile(groups.limits, (tiles, 1))
    together = max(1, steps // _ROUNDS)
    delayed = max(_DELAYED, len(inverse) // _SHARE)
    step = 0
    while step < steps:
        count = min(delayed // width or 1, steps - step)
        blocks = alive.shape[1]
        gone = np.zeros((tiles, blocks), dtype=bool)
        of = groups.of[alive]
        out = np.take_along_axis(room, of, axis=1) == 0
        u = np.empty((tiles, count * width, blocks * width), dtype=w.dtype)
        d = _diagonal_blocks(a, width)
        for j in range(0, count, together):
            number = min(together, count - j)
            pivots = _cheapest(_scores(w, d), number, out, of, room)
            gone[every[:, None], pivots] = True
            now = slice(step + j, step + j + number)
            order[:, now] = alive[every[:, None], pivots]
            done, fresh = u[:, : j * width], u[:, j * width : (j + number) * width]
            at = (pivots[:, :, None] * width + np.arange(width)).reshape(tiles, -1)
            if at.shape[1] == 1:
                lost = _eliminate_column(w, a, done, fresh, at[:, 0])
            else:
                lost = _eliminate_columns(w, a, done, fresh, at)
            losses[:, now] = lost.reshape(tiles, number, width).sum(axis=2)
            by_block = fresh.reshape(tiles, number * width, blocks, width)
            d -= np.einsum("tanx,tany->tnxy", by_block, by_block)
        step += count
        if step < steps:
            alive, w, a = _without(alive, w, a, u, gone, width)
    return Elimination(order, losses)


def _eliminate_column(
    w: np.ndarray, a: np.ndarray, done: np.ndarray, fresh: np.ndarray, pivot: np.ndarray
) -> np.ndarray:
    """Take one column a tile out of `w`; write its row of the Cholesky factor to `fresh`.

    Result: what that costs, (tiles, 1).
    """
    every = np.arange(len(pivot))
    row = a[every, pivot]
    if done.shape[1]:
        row -= (done[every, None, :, pivot] @ done)[:, 0]
    root = 1 / np.sqrt(np.maximum(row[every, pivot], 1e-30))
    row *= root[:, None]
    fresh[:, 0] = row
    taken = w[every, :, pivot] * root[:, None]
    w -= taken[:, :, None] * row[:, None, :]
    return np.asarray(np.square(taken).sum(axis=1)[:, None])


def _eliminate_columns(
    w: np.ndarray, a: np.ndarray, done: np.ndarray, fresh: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Do the same with several columns of each tile, `at` (tiles, rows of `fresh`)."""
    row = a[np.arange(len(at))[:, None], at]
    row -= np.take_along_axis(done, at[:, None], axis=2).transpose(0, 2, 1) @ done
    root = np.linalg.inv(np.linalg.cholesky(np.take_along_axis(row, at[:, None], axis=2)))
    fresh[:] = root @ row
    taken = np.take_along_axis(w, at[:, None], axis=2) @ root.transpose(0, 2, 1)
    w -= taken @ fresh
    # One behind the other: the factor is triangular.
    return np.asarray(np.square(taken).sum(axis=1))


def _cheapest(
    scores: np.ndarray, count: int, out: np.ndarray, of: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """Return the places of the `count` smallest scores of each tile, in place order.

    `out` (tiles, blocks) is left out. What is found is out, too, as is the rest of a group, see
    `of` (tiles, blocks), that has lost all there was `room` for (tiles, groups).
    """
    every = np.arange(len(scores))
    scores[out] = np.inf
    places = np.empty((len(scores), count), dtype=np.int64)
    for number in range(count):
        place = places[:, number] = scores.argmin(axis=1)
        group = of[every, place]
        room[every, group] -= 1
        scores[every, place] = np.inf
        out[every, place] = True
        full = room[every, group] == 0
        if full.any():
            shut = full[:, None] & (of == group[:, None])
            scores[shut] = np.inf
            out |= shut
    places.sort(axis=1)
    return places


def _scores(w: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return trace(W_B (Hinv_BB)^-1 W_B^T) for each block B, (tiles, blocks)."""
    tiles, blocks, width, _ = d.shape
    if width == 1:
        # Rounding may push the diagonal of a removed column to zero or below.
        return np.asarray(np.einsum("trk,trk->tk", w, w) / np.maximum(d[:, :, 0, 0], 1e-30))
    by_block = w.reshape(tiles, -1, blocks, width).transpose(0, 2, 3, 1)
    # A removed block may have become singular; it is out of the running anyway.
    safe = d + 1e-12 * np.eye(width, dtype=d.dtype)
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
    smaller = np.empty((tiles, columns.shape[1], columns.shape[1]), dtype=a.dtype)
    for t, keep in enumerate(columns):
        np.take(a[t, keep], keep, axis=1, out=smaller[t], mode="clip")
        rest = u[t].take(keep, axis=1)
        # numpy lets other threads run meanwhile; scipy's BLAS does not. The copy is because of
        # a matrix times its own transpose numpy makes a syrk, which is slower at these sizes.
        smaller[t] -= rest.T.copy() @ rest
    w = np.take_along_axis(w, columns[:, None, :], axis=2)
    return np.take_along_axis(alive, left, axis=1), w, smaller
