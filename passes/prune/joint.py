"""Which entries of a dimension hurt least, of all layers together that add up over it.

Each layer that reads a dimension loses the same entries and is refitted for itself: without the
entries B its outputs change by trace(W_B (Hinv_BB)^-1 W_B^T), B being the columns of its matrix
W that meet them (obs.py). The costs of all readers are added up, so that it is as if their
matrices were stacked, with a block-diagonal Hessian. The search is greedy, the cheapest entry
first; it is exact OBS for one reader with column blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from tilewright.layout import Tile
from tilewright.passes.prune import obs

# Rounds of elimination at least: from twice as many entries to drop on, two go in a round.
_ROUNDS = 128
# Rows of the factor gathered before Hinv is updated: one product instead of so many.
_DELAYED = 128


class Problem(NamedTuple):
    """Outputs that read the same inputs: dense weights W and the damped Hessian H.

    `target` is (outputs, inputs), `hessian` (inputs, inputs).
    """

    target: np.ndarray
    hessian: np.ndarray

    def energy(self) -> float:
        """Return trace(W H W^T), the squares of what W gives."""
        return float(
            np.einsum("oi,ij,oj->", self.target, self.hessian, self.target, optimize=True)
        )

    def refitted(self, alive: np.ndarray) -> np.ndarray:
        """Return the best weights that are zero but for the inputs in a mask."""
        return obs.refit(self.target, self.hessian, Tile(len(self.target)), alive[None])


class Reading(NamedTuple):
    """What some outputs make of a dimension: weights and Hinv of the columns that meet it.

    Columns are sorted by entry, equally many of each: `weights` is (outputs, columns),
    `inverse` (columns, columns). `share` weighs the costs among other readings'.
    """

    weights: np.ndarray
    inverse: np.ndarray
    share: float


def reading(problem: Problem, columns: np.ndarray, alive: np.ndarray, share: float) -> Reading:
    """Return how a problem's outputs read a dimension, once the inputs not `alive` are gone.

    `columns` is (entries, columns an entry), all of them alive.
    """
    target, hessian = problem
    if not alive.all():
        target = problem.refitted(alive)[:, alive]
        hessian = hessian[np.ix_(alive, alive)]
        columns = (np.cumsum(alive) - 1)[columns]
    at = columns.reshape(-1)
    return Reading(target[:, at], np.linalg.inv(hessian)[np.ix_(at, at)], share)


def cheapest_entries(readings: Sequence[Reading], entries: int, count: int) -> np.ndarray:
    """Return `count` of a dimension's entries in the order in which they go.

    Ties go to the lower entry.
    """
    order: list[int] = []
    gone = np.zeros(entries, dtype=bool)
    eliminations = [_Elimination(reading, entries) for reading in readings]
    together = max(1, count // _ROUNDS)
    while len(order) < count:
        scores = sum(e.share * e.scores() for e in eliminations)
        ranked = np.argsort(np.where(gone, np.inf, scores), kind="stable")
        picked = np.sort(ranked[: min(together, count - len(order))])
        gone[picked] = True
        order += picked.tolist()
        for elimination in eliminations:
            elimination.remove(picked)
    return np.array(order, dtype=np.int64)


def squared_sums(readings: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the squared weights of each entry: (matrix, columns by entry) of each reader.

    Each reader's sums are relative to those of all its weights.
    """
    shares = [
        np.square(matrix[:, columns].astype(np.float64)).sum(axis=(0, 2))
        / max(float(np.square(matrix.astype(np.float64)).sum()), 1e-30)
        for matrix, columns in readings
    ]
    return np.asarray(np.sum(shares, axis=0))


class _Elimination:
    """One reading, from which entries go: a block Cholesky factorisation of Hinv.

    What was eliminated is taken off Hinv many rows of the factor at a time.
    """

    def __init__(self, reading: Reading, entries: int) -> None:
        scale = float(np.mean(np.diag(reading.inverse)))
        self.share = reading.share / scale
        self._weights = reading.weights.astype(np.float32)
        self._inverse = (reading.inverse / scale).astype(np.float32)
        self._factor = np.empty((0, len(self._inverse)), np.float32)
        self._width = len(self._inverse) // entries
        split = self._inverse.reshape(entries, self._width, entries, self._width)
        self._blocks = np.einsum("nxny->nxy", split).copy()

    def scores(self) -> np.ndarray:
        """Return trace(W_B (Hinv_BB)^-1 W_B^T) for the columns B of each entry."""
        if self._width == 1:
            squares = np.einsum("ok,ok->k", self._weights, self._weights)
            return np.asarray(squares / np.maximum(self._blocks[:, 0, 0], 1e-30))
        split = self._weights.reshape(len(self._weights), -1, self._width).transpose(1, 2, 0)
        # A removed block has become singular; it is out of the running anyway.
        safe = self._blocks + 1e-12 * np.eye(self._width, dtype=np.float32)
        solved = np.linalg.solve(safe, split)
        return np.asarray((split * solved).sum(axis=(1, 2)))

    def remove(self, entries: np.ndarray) -> None:
        """Refit the weights without some entries, and take these out of Hinv."""
        at = (entries[:, None] * self._width + np.arange(self._width)).reshape(-1)
        rows = self._inverse[at] - self._factor[:, at].T @ self._factor
        root = np.linalg.cholesky(rows[:, at])
        rows = solve_triangular(root, rows, lower=True)
        self._weights -= solve_triangular(root, self._weights[:, at].T, lower=True).T @ rows
        split = rows.reshape(len(rows), -1, self._width)
        self._blocks -= np.einsum("knx,kny->nxy", split, split)
        self._factor = np.concatenate([self._factor, rows])
        if len(self._factor) >= _DELAYED:
            self._inverse -= self._factor.T @ self._factor
            self._factor = self._factor[:0]
