"""Tile OBS: which tiles of a weight matrix to drop, and what the rest must become.

A layer computes Y = W X, W of (outputs, inputs), X of (inputs, columns). With the Hessian
H = X X^T + d I, setting the inputs B of some rows to zero and refitting those rows costs
trace(W_B (Hinv_BB)^-1 W_B^T), and the refit is W -= W_B (Hinv_BB)^-1 Hinv_B (Hassibi & Stork,
"Optimal Brain Surgeon", 1993). All rows of a tile share one mask, so they share one Hinv:
this is ExactOBS (Frantar & Alistarh, "Optimal Brain Compression", 2022) with a tile for a row.

Which inputs go is found greedily, in float32 (elimination.py). The values do not depend on its
rounding: they are solved for afterwards, in float64, on the support that the search found.
"""

from typing import NamedTuple

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


class Ranking(NamedTuple):
    """In which order tiles leave each row of tiles, of so many `blocks`, and what that costs.

    `order` and `losses` are those of an Elimination, (row tiles, steps). Masks are True where a
    tile is kept, (row tiles, blocks).
    """

    order: np.ndarray
    losses: np.ndarray
    blocks: int

    def without(self, removed: int) -> np.ndarray:
        """Return the mask without the first `removed` tiles of each row of tiles."""
        return self._mask(np.full(len(self.order), removed))

    def without_cheapest(self, removed: int) -> np.ndarray:
        """Return the mask without as many, more of them from rows that lose less by it.

        Every row of tiles keeps one. Frantar & Alistarh call this the global mask.
        """
        return self._mask(won(self.losses, len(self.order) * removed))

    def _mask(self, counts: np.ndarray) -> np.ndarray:
        """Return the mask without the first `counts` of each row's order."""
        kept = np.ones((len(self.order), self.blocks), dtype=bool)
        rows, steps = np.nonzero(np.arange(self.order.shape[1]) < counts[:, None])
        kept[rows, self.order[rows, steps]] = False
        return kept


def ranking(weights: np.ndarray, inverse: np.ndarray, tile: Tile, steps: int) -> Ranking:
    """Rank tiles by greedy elimination. Ties go to the lower column.

    `inverse` is the inverse of the damped Hessian.
    """
    blocks = tile.grid(weights.shape)[1]
    found = eliminate(weights.astype(np.float32), inverse, tile, min(steps, blocks - 1))
    return Ranking(*found, blocks)


def removed_of(blocks: int, sparsity: float) -> int:
    """Return how many tiles of a row go: round(sparsity * blocks), but one stays."""
    return min(round(sparsity * blocks), blocks - 1)


def tile_masks(
    weights: np.ndarray, inverse: np.ndarray, tile: Tile, sparsity: float
) -> np.ndarray:
    """Choose `removed_of` each row of tiles. Result: True where kept, (row tiles, blocks)."""
    removed = removed_of(tile.grid(weights.shape)[1], sparsity)
    return ranking(weights, inverse, tile, removed).without(removed)


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
    found = eliminate(weights.astype(np.float32), inverse, Tile(1), removed, groups)
    return Ranking(*found, weights.shape[1]).without(removed)


def prune(
    weights: np.ndarray,
    hessian: np.ndarray,
    tile: Tile,
    sparsity: float,
) -> np.ndarray:
    """Return the weights with `sparsity` of the tiles at zero, the rest refitted.

    `weights` is (outputs, inputs), `hessian` the damped (inputs, inputs). A ragged last tile
    is smaller. Result: float64.
    """
    kept = tile_masks(weights, np.linalg.inv(hessian), tile, sparsity)
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
    alive = np.repeat(kept, tile.inputs, axis=1)[:, : wide.shape[1]]
    stays, goes = alive.sum(axis=1), (~alive).sum(axis=1)
    # A row of tiles costs 2/3 of the cube of what stays, or of what goes with Hinv at hand.
    spared = 2 / 3 * np.maximum(stays**3 - goes**3, 0).sum()
    inverse = np.linalg.inv(hessian) if spared > 2 * len(hessian) ** 3 else None
    result = np.zeros_like(wide)

    def solve(index: int) -> None:
        part = slice(index * tile.outputs, (index + 1) * tile.outputs)
        left, gone = np.flatnonzero(alive[index]), np.flatnonzero(~alive[index])
        # LU where Cholesky would do: numpy's lets the other threads run meanwhile.
        if inverse is None or len(left) <= len(gone):
            solved = np.linalg.solve(hessian[np.ix_(left, left)], right[part, left].T)
            result[part, left] = solved.T
        else:
            # V = W - W_B (Hinv_BB)^-1 Hinv_B, without the inputs B.
            lost = np.linalg.solve(inverse[np.ix_(gone, gone)], wide[part, gone].T)
            result[part, left] = wide[part, left] - lost.T @ inverse[np.ix_(gone, left)]

    spread_over_cores(solve, range(len(kept)))
    return result


def smallest_tiles(weights: np.ndarray, tile: Tile, sparsity: float) -> np.ndarray:
    """Choose tiles by their squared sum. Result: True where kept, (row tiles, column blocks).

    The same count for every row of tiles as `tile_masks`; it equals that for H = I.
    """
    rows, columns = padded(weights.astype(np.float64), tile)
    blocks = columns // tile.inputs
    scores = np.square(rows).sum(axis=1).reshape(len(rows), blocks, tile.inputs).sum(axis=2)
    removed = removed_of(blocks, sparsity)
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
