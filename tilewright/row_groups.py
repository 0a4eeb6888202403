"""Rows of a weight matrix that have their zeros in the same columns, wherever they stand.

Lanes of positions store each row by itself, so the rows of a tile need not be neighbours:
pruning groups rows that go well together, and kernels and plans find the groups again.
"""

from collections import defaultdict

import numpy as np

# Rows whose patterns united grow by no more than this share belong together.
_STRAY = 1.05
# Rows like no other one after which none is looked for any more: the zeros are in no tiles.
_STRANGERS = 16
# Rows that are compared with all others at a time.
_COMPARED = 128


def gathered(matrix: np.ndarray, rows_each: int) -> np.ndarray:
    """Return an order of rows in which those of one tile, `rows_each` of them, are neighbours.

    Rows that fill no tile come last.
    """
    whole: list[int] = []
    rest: list[int] = []
    for rows, _ in equal_rows(matrix, rows_each, dense=False):
        cut = len(rows) // rows_each * rows_each
        whole += rows[:cut]
        rest += rows[cut:]
    return np.array(whole + rest, dtype=np.int64)


def equal_rows(
    matrix: np.ndarray, rows_each: int, dense: bool
) -> list[tuple[list[int], np.ndarray]]:
    """Group rows by zero pattern, in order of first appearance; with the columns of each.

    Rows that were pruned together, `rows_each` of them, are one group despite stray zeros. Of a
    `dense` matrix all rows are.
    """
    outputs, inputs = matrix.shape
    if dense:
        return [(list(range(outputs)), np.arange(inputs))]
    masks = _with_stray_zeros(matrix != 0, rows_each)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, bits in enumerate(np.packbits(masks, axis=1)):
        groups[bits.tobytes()].append(row)
    return [(rows, np.flatnonzero(masks[rows[0]])) for rows in groups.values()]


def _with_stray_zeros(masks: np.ndarray, rows_each: int) -> np.ndarray:
    """Let rows that were pruned together share one pattern despite a few zeros of their own.

    A weight inside a kept tile may happen to be zero, as many are that were rounded; computing
    it costs less than a tile of fewer rows would. Rows that were pruned together are
    neighbours, or those whose patterns differ least.
    """
    masks = masks.copy()
    alone = np.zeros(len(masks), dtype=bool)
    for first in range(0, len(masks), rows_each):
        block = masks[first : first + rows_each]
        union = block.any(axis=0)
        if union.sum() * len(block) <= _STRAY * block.sum():
            block[:] = union
        else:
            alone[first : first + rows_each] = True
    _, kind, sizes = np.unique(
        np.packbits(masks, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    # Those of which there is a whole tile need no others.
    alone &= sizes[kind.reshape(-1)] < rows_each
    _unite_alike(masks, np.flatnonzero(alone), rows_each)
    return masks


def _unite_alike(masks: np.ndarray, rows: np.ndarray, rows_each: int) -> None:
    """Give those of some rows that are nearly alike, up to `rows_each` of them, one pattern."""
    wide = masks[rows].astype(np.float32)
    counts = wide.sum(axis=1)
    left = np.ones(len(rows), dtype=bool)
    strangers = 0
    for first in range(len(rows)):
        if not first % _COMPARED:
            common = wide[first : first + _COMPARED] @ wide.T
        if not left[first]:
            continue
        if strangers == _STRANGERS:
            return
        differing = np.where(left, counts - 2 * common[first % _COMPARED], np.inf)
        differing[first] = -np.inf
        near = np.argsort(differing, kind="stable")[: min(rows_each, left.sum())]
        union = np.logical_or.accumulate(masks[rows[near]], axis=0)
        computed = union.sum(axis=1) * np.arange(1, len(near) + 1)
        fits = computed <= _STRAY * np.cumsum(counts[near])
        most = int(np.flatnonzero(fits)[-1])
        masks[rows[near[: most + 1]]] = union[most]
        left[near[: most + 1]] = False
        strangers = 0 if most else strangers + 1
