"""Which tiles of a layer's weights stay, and what becomes of the weights in them."""

from typing import NamedTuple

import numpy as np

from tilewright.layers import Layer
from tilewright.layout import Layout, Pattern, Tile
from tilewright.passes.prune import obs
from tilewright.passes.prune.descent import Rows
from tilewright.passes.prune.joint import Problem
from tilewright.passes.prune.matching import row_order, weight_scores

_LEAST_WORTH = 1e-3  # of rows that were chosen evenly


class Choice(NamedTuple):
    """How a layer is pruned; with `gathers` the rows of a tile may stand anywhere."""

    layout: Layout
    sparsity: float
    gathers: bool = False


class Support(NamedTuple):
    """Which weights stay, of the rows of a matrix that `order` names; other rows stay whole.

    `kept` is (row tiles, column blocks) of `tile`.
    """

    order: np.ndarray
    tile: Tile
    kept: np.ndarray

    def masked(self, matrix: np.ndarray) -> np.ndarray:
        """Return a matrix with zeros in place of what goes."""
        result = matrix.copy()
        mask = obs.spread(self.kept, self.tile, (len(self.order), matrix.shape[1]))
        result[self.order] = np.where(mask, matrix[self.order], 0)
        return result

    def rows(self, inputs: int) -> list[Rows]:
        """Return which rows of a matrix of so many columns have weights in which ones."""
        wide = obs.spread(self.kept, Tile(1, self.tile.inputs), (len(self.kept), inputs))
        starts = range(0, len(self.order), self.tile.outputs)
        return [
            Rows(self.order[start : start + self.tile.outputs], np.flatnonzero(columns))
            for start, columns in zip(starts, wide, strict=True)
        ]

    def refitted(self, problem: Problem) -> np.ndarray:
        """Return the best weights for a problem that are zero in place of what goes."""
        result = problem.target.copy()
        result[self.order] = obs.refit(
            problem.target[self.order], problem.hessian, self.tile, self.kept
        )
        return result


def by_loss(problem: Problem, choice: Choice, taps: int, rows: str) -> Support:
    """Choose what hurts least by elimination (obs.py), in each row of tiles or among `rows`."""
    layout, sparsity, _ = choice
    if isinstance(layout, Pattern):
        target, inverse = problem.target, np.linalg.inv(problem.hessian)
        mask = obs.pattern_mask(target, inverse, layout, taps)
        return Support(np.arange(len(target)), Tile(1), mask)
    return eliminated(problem, choice, rows, sparsity).support(sparsity)


class Eliminated(NamedTuple):
    """Tiles in the order in which elimination takes them, from the rows of a matrix in `order`.

    `worth` is what these rows are of all, by what their cheapest tiles are worth: those that go
    at the choice's sparsity. Weights that stay, which may be worth far more, say nothing.
    """

    order: np.ndarray
    tile: Tile
    ranking: obs.Ranking
    rows: str
    worth: float

    def support(self, sparsity: float) -> Support:
        """Return what a sparsity leaves, up to the one that tiles were ranked to."""
        removed = obs.removed_of(self.ranking.blocks, sparsity)
        everywhere = self.rows == "global"
        without = self.ranking.without_cheapest if everywhere else self.ranking.without
        return Support(self.order, self.tile, without(removed))

    def losses(self) -> np.ndarray | None:
        """Return the squared errors of these rows, refitted, without 1, 2, ... tiles of each.

        None where rows lose different numbers of them.
        """
        if self.rows == "global":
            return None
        return np.cumsum(self.ranking.losses.sum(axis=0, dtype=np.float64))


def eliminated(
    problem: Problem, choice: Choice, rows: str, most: float, rows_of_tiles: int | None = None
) -> Eliminated:
    """Take tiles until a share of them, `most`, is gone; all but one a row with rows="global".

    Where there are more than so many `rows_of_tiles`, these are taken from alone, evenly
    chosen. Rows that may stand anywhere are put together for the choice's sparsity.
    """
    layout, sparsity, gathers = choice
    assert isinstance(layout, Tile), "of a pattern there is one choice"
    target, inverse = problem.target, np.linalg.inv(problem.hessian)
    order = np.arange(len(target))
    if gathers:
        order = row_order(target, np.diag(inverse), layout, sparsity)
    count, blocks = layout.grid(target.shape)
    worth = 1.0
    if rows_of_tiles is not None and count > rows_of_tiles:
        whole = len(target) // layout.outputs
        chosen = np.linspace(0, whole - 1, rows_of_tiles).astype(np.int64)
        order = order[chosen[:, None] * layout.outputs + np.arange(layout.outputs)].ravel()
        scores = weight_scores(target, np.diag(inverse), layout.inputs)
        going = obs.removed_of(blocks, sparsity)
        lost = np.partition(scores, going, axis=1)[:, :going].sum(axis=1, dtype=np.float64)
        # Where nothing that goes is worth anything, rows count alike.
        worth = (
            float(lost[order].sum() / lost.sum()) if lost.any() else len(order) / len(target)
        )
    steps = blocks if rows == "global" else obs.removed_of(blocks, most)
    found = obs.ranking(target[order], inverse, layout, steps)
    return Eliminated(order, layout, found, rows, max(worth, _LEAST_WORTH))


def by_magnitude(magnitudes: np.ndarray, choice: Choice, taps: int) -> Support:
    """Choose the tiles with the smallest squared sums of magnitudes, (outputs, inputs)."""
    layout, sparsity, gathers = choice
    order = np.arange(len(magnitudes))
    if isinstance(layout, Pattern):
        return Support(order, Tile(1), obs.smallest_of_pattern(magnitudes, layout, taps))
    if gathers:
        order = row_order(magnitudes, np.ones(magnitudes.shape[1]), layout, sparsity)
    return Support(order, layout, obs.smallest_tiles(magnitudes[order], layout, sparsity))


def drop_smallest(layer: Layer, magnitudes: np.ndarray, choice: Choice) -> None:
    """Set the tiles of least magnitude to zero; nothing is refitted."""
    support = by_magnitude(magnitudes, choice, layer.taps)
    layer.replace(support.masked(layer.matrix()))
