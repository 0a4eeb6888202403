"""Which tiles stay when a network is pruned in rounds, and which come back.

Tiles are kept or not, True or False in an array of (row tiles, column blocks). Each row of
tiles keeps at least one, its largest. Ties go to the lower index.
"""

from collections.abc import Sequence

import numpy as np

from tilewright.layout import Tile


def mean_squares(matrix: np.ndarray, tile: Tile) -> np.ndarray:
    """Return the mean square of each tile of a matrix, (row tiles, column blocks), float64.

    A mean, so that tiles of several sizes compare, and ragged last ones.
    """
    starts = [
        np.arange(0, size, step)
        for size, step in zip(matrix.shape, (tile.outputs, tile.inputs), strict=True)
    ]
    rows, columns = (
        np.diff(start, append=size) for start, size in zip(starts, matrix.shape, strict=True)
    )
    sums = np.add.reduceat(np.square(matrix, dtype=np.float64), starts[0], axis=0)
    return np.asarray(np.add.reduceat(sums, starts[1], axis=1) / np.outer(rows, columns))


def largest(scores: Sequence[np.ndarray], sparsity: float) -> list[np.ndarray]:
    """Return which tiles of several layers are left without the smallest of them all together.

    round(sparsity * tiles) go, fewer where that would leave rows of tiles without any.
    """
    flat = np.concatenate([_last_of_row_kept(score).reshape(-1) for score in scores])
    removed = min(round(sparsity * len(flat)), int(np.isfinite(flat).sum()))
    kept = np.ones(len(flat), dtype=bool)
    kept[np.argsort(flat, kind="stable")[:removed]] = False
    ends = np.cumsum([score.size for score in scores])[:-1]
    parts = zip(np.split(kept, ends), scores, strict=True)
    return [part.reshape(score.shape) for part, score in parts]


def exchanged(
    kept: np.ndarray, magnitudes: np.ndarray, gradients: np.ndarray, share: float
) -> np.ndarray:
    """Return which tiles are kept when some of them make room for as many others.

    round(share * kept) tiles of least magnitude are dropped, and those with the largest
    gradients among all that are not kept then are; there may be some among them that were
    just dropped. What has no gradient does not come back, so fewer may be dropped. Liu et
    al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration" (2021).
    """
    droppable = np.where(kept, _last_of_row_kept(np.where(kept, magnitudes, -1)), np.inf)
    order = np.argsort(droppable, axis=None, kind="stable")
    # Whatever is dropped may itself come back: those without a gradient are the limit.
    count = min(
        round(share * int(kept.sum())),
        int(np.isfinite(droppable).sum()),
        int((~kept & (gradients > 0)).sum()),
    )
    after = kept.copy()
    after.reshape(-1)[order[:count]] = False
    wanted = np.where(after, -np.inf, gradients)
    after.reshape(-1)[np.argsort(-wanted, axis=None, kind="stable")[:count]] = True
    return after


def _last_of_row_kept(scores: np.ndarray) -> np.ndarray:
    """Return the scores with the largest of each row at infinity: it is never removed."""
    kept = scores.copy()
    kept[np.arange(len(scores)), scores.argmax(axis=1)] = np.inf
    return kept
