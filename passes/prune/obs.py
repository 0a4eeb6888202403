"""Tile OBS: which tiles of a weight matrix to drop, and what the rest must become.

A layer computes Y = W X, W of (outputs, inputs), X of (inputs, columns). With the Hessian
H = X X^T + d I, setting the inputs B of some rows to zero and refitting those rows costs
trace(W_B (Hinv_BB)^-1 W_B^T), and the refit is W -= W_B (Hinv_BB)^-1 Hinv_B (Hassibi & Stork,
"Optimal Brain Surgeon", 1993). All rows of a tile share one mask, so they share one Hinv:
this is ExactOBS (Frantar & Alistarh, "Optimal Brain Compression", 2022) with a tile for a row.

Which inputs go is found greedily, in float32 (elimination.py). The values do not depend on its
rounding: they are solved for afterwards, in float64, on the support that the search found.
"""

from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import isotonic_regression

from tilewright.layout import Pattern, Tile
from tilewright.passes.prune.elimination import eliminate, padded
from tilewright.threads import spread_over_cores

_SHARED = 0.05  # of the mean energy of a layer's inputs, that damping takes each to have


def damped(hessian: np.ndarray, damp: float) -> np.ndarray:
    """Return H + `damp` (diag(H) + `_SHARED` mean(diag(H)) I), or I where H is zero.

    Correlations shrink, as an estimate from few samples should (Ledoit & Wolf, 2004; towards
    the diagonal: Schaefer & Strimmer, 2005), and inputs that are hardly ever seen are left
    where they were.
    """
    own = np.diag(hessian)
    shared = _SHARED * float(np.mean(own))
    return hessian + np.diag(damp * (own + shared) if shared > 0 else np.ones(len(own)))


def asymmetric_target(
    weights: np.ndarray, aims: np.ndarray, gram: np.ndarray, hessian: np.ndarray
) -> np.ndarray:
    """Return the dense weights V that make up for the errors in a layer's input.

    `aims` is Y Xhat^T and `gram` is Xhat Xhat^T, of what the layer is to give and of the
    compressed network's input; `hessian` is the damped `gram`, D + gram. V minimises
    |Y - V Xhat|^2 + |(V - W) D^1/2|^2, so V = (Y Xhat^T + W D) hessian^-1.
    """
    moved = aims + weights.astype(np.float64) @ (hessian - gram)
    return np.asarray(cho_solve(cho_factor(hessian, lower=True), moved.T).T)


def tile_masks(
    weights: np.ndarray, inverse: np.ndarray, tile: Tile, sparsity: float
) -> np.ndarray:
    """Choose tiles by greedy elimination. Result: True where kept, (row tiles, column blocks).

    `inverse` is the inverse of the damped Hessian. Each row of tiles loses
    round(sparsity * column blocks), but for one that it keeps. Ties go to the lower column.
    """
    rows, blocks = tile.grid(weights.shape)
    removed = _removed(blocks, sparsity)
    order = eliminate(weights.astype(np.float32), inverse, tile, removed).order
    return _mask_without(order, np.full(rows, removed), blocks)


def tile_masks_by_loss(
    weights: np.ndarray, inverse: np.ndarray, tile: Tile, sparsity: float
) -> np.ndarray:
    """Choose as many tiles as `tile_masks`, more of them from rows that lose less by it.

    Every row of tiles keeps one. Frantar & Alistarh call this the global mask.
    """
    rows, blocks = tile.grid(weights.shape)
    removed = _removed(blocks, sparsity)
    order, losses = eliminate(weights.astype(np.float32), inverse, tile, blocks - 1)
    return _mask_without(order, won(losses, rows * removed), blocks)


def won(losses: np.ndarray, total: int) -> np.ndarray:
    """Share `total` steps out among rows, so that the first steps of each lose least in all.

    `losses` is (rows, steps). A dear step may lead to a cheap one, and has to be paid for it:
    the slopes of the largest convex curve below a row's cumulative losses are sorted, not the
    losses themselves. No other shares lose less, but where the last row to be served stops
    between two corners of its curve: then by no more than it is above the curve there.
    Result: (rows,).
    """
    if not total:
        return np.zeros(len(losses), dtype=np.int64)
    slopes = np.array([isotonic_regression(row).x for row in losses])
    cheapest = np.argsort(slopes, axis=None, kind="stable")[:total]
    return np.bincount(cheapest // losses.shape[1], minlength=len(losses))


def pattern_mask(
    weights: np.ndarray, inverse: np.ndarray, pattern: Pattern, taps: int = 1
) -> np.ndarray:
    """Choose single weights by greedy elimination, row by row, as many as a pattern lets go.

    Columns are (channels, `taps`), see `Pattern.groups`. Result: True where kept,
    (outputs, inputs).
    """
    groups = pattern.groups(weights.shape[1], taps)
    removed = int(groups.limits.sum())
    order = eliminate(weights.astype(np.float32), inverse, Tile(1), removed, groups).order
    return _mask_without(order, np.full(len(weights), removed), weights.shape[1])


def prune(
    weights: np.ndarray,
    hessian: np.ndarray,
    tile: Tile,
    sparsity: float,
    choose: Callable[[np.ndarray, np.ndarray, Tile, float], np.ndarray] = tile_masks,
) -> np.ndarray:
    """Return the weights with `sparsity` of the tiles at zero, the rest refitted.

    `weights` is (outputs, inputs), `hessian` the damped (inputs, inputs). A ragged last tile
    is smaller. Result: float64.
    """
    kept = choose(weights, np.linalg.inv(hessian), tile, sparsity)
    return refit(weights, hessian, tile, kept)


def prune_pattern(
    weights: np.ndarray, hessian: np.ndarray, pattern: Pattern, taps: int = 1
) -> np.ndarray:
    """Return the weights with what a pattern lets go at zero, the rest refitted, float64."""
    kept = pattern_mask(weights, np.linalg.inv(hessian), pattern, taps)
    return refit(weights, hessian, Tile(1), kept)


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
    rows, columns = padded(weights.astype(np.float64), tile)
    blocks = columns // tile.inputs
    scores = np.square(rows).sum(axis=1).reshape(len(rows), blocks, tile.inputs).sum(axis=2)
    removed = _removed(blocks, sparsity)
    order = np.argsort(scores, axis=1, kind="stable")[:, :removed]
    kept = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(kept, order, False, axis=1)
    return kept


def smallest_of_pattern(weights: np.ndarray, pattern: Pattern, taps: int = 1) -> np.ndarray:
    """Choose single weights by magnitude, as `pattern_mask` does for H = I."""
    of, limits = pattern.groups(weights.shape[1], taps)
    order = np.lexsort((np.abs(weights), np.broadcast_to(of, weights.shape)))
    # Sorted by group, and by magnitude in it: alike for all rows, a group's first ones go.
    by_group = np.sort(of)
    gone = np.arange(len(of)) - np.searchsorted(by_group, by_group) < limits[by_group]
    kept = np.ones(weights.shape, dtype=bool)
    np.put_along_axis(kept, order[:, gone], False, axis=1)
    return kept


def spread(kept: np.ndarray, tile: Tile, shape: tuple[int, int]) -> np.ndarray:
    """Widen a mask of tiles to a mask of weights, (outputs, inputs)."""
    wide = np.repeat(np.repeat(kept, tile.outputs, axis=0), tile.inputs, axis=1)
    return wide[: shape[0], : shape[1]]


def _removed(blocks: int, sparsity: float) -> int:
    return min(round(sparsity * blocks), blocks - 1)


def _mask_without(order: np.ndarray, counts: np.ndarray, blocks: int) -> np.ndarray:
    """Return the mask, (row tiles, blocks), without the first `counts` of each row's order."""
    kept = np.ones((len(order), blocks), dtype=bool)
    rows, steps = np.nonzero(np.arange(order.shape[1]) < counts[:, None])
    kept[rows, order[rows, steps]] = False
    return kept
