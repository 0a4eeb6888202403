"""Tile matching: an order of rows (and columns) that puts what is unimportant into whole tiles.

Scores say what each weight is worth; a tile is worth the sum over its weights, and dropping the
least of them costs their sum, the pruned mass. Exchanging rows between tiles lowers it, as in
Ji et al., "TETRIS: TilE-matching the TRemendous Irregular Sparsity" (2018): (E) choose the
tiles to drop, (M) move rows to where what is dropped costs them least, and so on until the mass
stops falling. White noise has little to gain, rows that need the same inputs have much.

`tetris` is that method, with exchanges in pairs along both axes. `order` is for many layers at
once and one axis, where every row of tiles loses equally many: all rows move at a time, to the
places of an optimal assignment, and start from groups of like rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from tilewright.layout import Tile
from tilewright.passes.prune.obs import removed_of

_LEAST = 1e-6  # of the pruned mass, that an exchange must gain
_WORTH = 1e-3  # of it, that a round of assignments must gain
# A weight that stays counts as much as this many that just go, however large it is: else few
# huge weights decide which rows are alike.
_CAP = 4.0


class Matched(NamedTuple):
    """Orders of rows and columns, and True for the tiles of the ordered matrix that stay."""

    rows: np.ndarray
    columns: np.ndarray
    kept: np.ndarray


class Rows(NamedTuple):
    """A matrix whose rows get another order, some of them at a time.

    `scores` (rows, column blocks) say what losing a block costs a row; each `height` rows in a
    row lose the same `removed` blocks. `at` (entries, rows of each) are the rows that an entry
    of the dimension has.
    """

    scores: np.ndarray
    at: np.ndarray
    height: int
    removed: int


def tetris(scores: np.ndarray, tile: Tile, rate: float, rounds: int = 100) -> Matched:
    """Return orders under which dropping the share `rate` of all tiles costs little.

    `scores` is (outputs, inputs), not negative; a ragged last tile is smaller. Each step lowers
    the pruned mass, `rounds` of them at most. Ties go to the lower index.
    """
    x = scores.astype(np.float64)
    rows, columns = (np.arange(n) for n in x.shape)
    kept = _cheapest_dropped(x, tile, rate)
    for _ in range(rounds):
        before = _mass(x, tile, kept)
        by_rows = _exchanged(x, _wide(~kept, tile, x.shape))
        x, rows = x[by_rows], rows[by_rows]
        by_columns = _exchanged(x.T, _wide(~kept, tile, x.shape).T)
        x, columns = x[:, by_columns], columns[by_columns]
        kept = _cheapest_dropped(x, tile, rate)
        if _mass(x, tile, kept) >= before * (1 - _LEAST):
            break
    return Matched(rows, columns, kept)


def order(places: Sequence[Rows], rounds: int = 20) -> np.ndarray:
    """Return an order of a dimension's entries under which tiles cost little wherever it runs.

    New entry i is old entry result[i]. The pruned masses of `places`, each relative to all that
    its matrix is worth, add up to no more than for the old order, which is returned where none
    better is found.
    """
    places = [place._replace(scores=_relative(place.scores)) for place in places]
    old = np.arange(len(places[0].at))
    places = [place for place in places if place.removed]
    together = [n for n in map(_entries_of_tile, places) if 1 < n < len(old)]
    if not together:
        return old
    alike = _like_together(np.hstack([_capped(p) for p in places]), min(together))
    found = _settled(places, alike, rounds)
    if _masses(places, found) >= _masses(places, old):
        found = _settled(places, old, rounds)
    return found if _masses(places, found) < _masses(places, old) else old


def row_order(
    weights: np.ndarray, diagonal: np.ndarray, tile: Tile, sparsity: float
) -> np.ndarray:
    """Return an order of one layer's rows in which each `tile.outputs` go well together.

    `weights` is (outputs, inputs), `diagonal` as for `weight_scores`. For kernels whose tiles
    may be of any rows: with result[order] = obs.prune(weights[order], ...) each row stays in
    its place and nothing else of the network changes.
    """
    scores = weight_scores(weights, diagonal, tile.inputs)
    removed = removed_of(scores.shape[1], sparsity)
    return order([Rows(scores, np.arange(len(scores))[:, None], tile.outputs, removed)])


def pruned_mass(place: Rows, order: np.ndarray) -> float:
    """Return the sum of the scores that go when entries have this order."""
    sums = _tile_sums(place, order)
    return float(np.partition(sums, place.removed, axis=1)[:, : place.removed].sum())


def weight_scores(weights: np.ndarray, diagonal: np.ndarray, width: int) -> np.ndarray:
    """Return what losing `width` neighbouring inputs costs each output.

    `weights` is (outputs, inputs), `diagonal` (inputs,) that of the inverse of the layer's
    damped Hessian: w^2 / Hinv_kk is the error when w alone goes and the rest of its row is
    refitted (Hassibi & Stork, "Optimal Brain Surgeon", 1993); of ones it gives magnitudes.
    Result: (outputs, column blocks) float32.
    """
    each = np.square(weights.astype(np.float64)) / diagonal
    blocks = np.add.reduceat(each, np.arange(0, each.shape[1], width), axis=1)
    return np.asarray(blocks, np.float32)


def _cheapest_dropped(x: np.ndarray, tile: Tile, rate: float) -> np.ndarray:
    """Return False for the tiles of least sums (tiles of rows, tiles of columns)."""
    sums = np.add.reduceat(x, np.arange(0, x.shape[0], tile.outputs), axis=0)
    sums = np.add.reduceat(sums, np.arange(0, x.shape[1], tile.inputs), axis=1)
    kept = np.ones(sums.shape, dtype=bool)
    gone = np.argsort(sums, axis=None, kind="stable")[: round(rate * sums.size)]
    kept.flat[gone] = False
    return kept


def _wide(tiles: np.ndarray, tile: Tile, shape: tuple[int, ...]) -> np.ndarray:
    wide = np.repeat(np.repeat(tiles, tile.outputs, axis=0), tile.inputs, axis=1)
    return wide[: shape[0], : shape[1]]


def _mass(x: np.ndarray, tile: Tile, kept: np.ndarray) -> float:
    return float(x[_wide(~kept, tile, x.shape)].sum())


def _exchanged(x: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Return the order of rows after all exchanges of two of them that lower the mass.

    `gone` (rows, columns) says what each place loses. Row i in place j costs s[i, j]; a place's
    losses stay as they are, so an exchange changes two rows and columns of the gains only.
    """
    rows = np.arange(len(x))
    s = x @ gone.T.astype(np.float64)
    own = np.diag(s).copy()
    least = _LEAST * own.sum()
    gains = own[:, None] + own - s - s.T
    while True:
        i, j = divmod(int(gains.argmax()), len(rows))
        if gains[i, j] <= least:
            return rows
        pair, swapped = [i, j], [j, i]
        rows[pair], s[pair] = rows[swapped], s[swapped]
        own[pair] = s[pair, pair]
        gains[pair] = own[pair, None] + own - s[pair] - s[:, pair].T
        gains[:, pair] = gains[pair].T


def _settled(places: Sequence[Rows], start: np.ndarray, rounds: int) -> np.ndarray:
    """Move all entries to where they cost least, until that hardly lowers the pruned masses."""
    found, mass = start, _masses(places, start)
    for _ in range(rounds):
        costs = np.sum([_costs(place, found) for place in places], axis=0)
        entries, slots = linear_sum_assignment(costs)
        moved = np.empty_like(found)
        moved[slots] = entries
        before, mass = mass, _masses(places, moved)
        if mass < before:
            found = moved
        if mass > before * (1 - _WORTH):
            break
    return found


def _masses(places: Sequence[Rows], order: np.ndarray) -> float:
    return sum(pruned_mass(place, order) for place in places)


def _relative(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores / max(float(scores.sum(dtype=np.float64)), 1e-30))


def _entries_of_tile(place: Rows) -> int:
    """Count the entries whose first rows share the first tile; 1 where none do."""
    tiles = place.at[:, 0] // place.height
    return int(np.count_nonzero(tiles == tiles[0]))


def _capped(place: Rows) -> np.ndarray:
    """Return what makes entries alike: (entries, rows of each times column blocks)."""
    edge = np.partition(place.scores, place.removed, axis=1)[:, place.removed, None]
    # Where more weights are zero than go, none is at the edge.
    edge = np.where(edge > 0, edge, place.scores.mean(axis=1, keepdims=True))
    capped = np.minimum(place.scores, _CAP * edge)
    return np.asarray(capped[place.at].reshape(len(place.at), -1))


def _like_together(features: np.ndarray, size: int) -> np.ndarray:
    """Return an order in which each `size` entries are alike, by their cosines.

    A group starts from the entry that is least like all that are left, which would find no
    company later, and takes the entry that is most like all that it has.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, 1e-30)
    alike = unit @ unit.T
    left = np.ones(len(unit), dtype=bool)
    totals = alike.sum(axis=1)
    found: list[int] = []
    while left.any():
        group = [int(np.where(left, totals, np.inf).argmin())]
        left[group] = False
        likeness = alike[group[0]].copy()
        while len(group) < size and left.any():
            group.append(int(np.where(left, likeness, -np.inf).argmax()))
            left[group[-1]] = False
            likeness += alike[group[-1]]
        totals -= alike[:, group].sum(axis=1)
        found += group
    return np.asarray(found)


def _tile_sums(place: Rows, order: np.ndarray) -> np.ndarray:
    """Return what each row of tiles would lose with a column block, in a new order."""
    scores = place.scores.copy()
    scores[place.at] = place.scores[place.at[order]]
    starts = np.arange(0, len(scores), place.height)
    return np.asarray(np.add.reduceat(scores, starts, axis=0))


def _costs(place: Rows, order: np.ndarray) -> np.ndarray:
    """Return what entry i costs in place j, if tiles lose what is cheapest in this order."""
    sums = _tile_sums(place, order)
    gone = np.zeros_like(sums)
    cheapest = np.argsort(sums, axis=1, kind="stable")[:, : place.removed]
    np.put_along_axis(gone, cheapest, 1, axis=1)
    entries = len(place.at)
    lost = gone[place.at // place.height].reshape(entries, -1)
    return np.asarray(place.scores[place.at].reshape(entries, -1) @ lost.T)
