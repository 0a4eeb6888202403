"""A few integers that stand for many: the best ones there are, for numbers on a grid."""

import numpy as np


def best_codebook(counts: np.ndarray, values: int) -> np.ndarray:
    """Return `values` integers from -m to m that minimise the squared distances to the nearest.

    `counts`, (2 m + 1,), says how much each integer from -m to m counts. -m, 0 and m are among
    the result, which is sorted: at least three. It is exact, by dynamic programming over the
    sorted integers (Wang & Song, "Ckmeans.1d.dp", 2011).
    """
    most = len(counts) // 2
    between = _costs(counts.astype(np.float64))
    between[:most, most + 1 :] = np.inf  # no gap reaches over zero
    # dearest[n, i]: the least cost of what is up to i, where i is the n-th integer taken.
    least = np.full((values, len(counts)), np.inf)
    before = np.zeros((values, len(counts)), dtype=np.int64)
    least[0, 0] = 0.0
    for n in range(1, values):
        reached = least[n - 1][:, None] + between
        before[n] = reached.argmin(axis=0)
        least[n] = reached.min(axis=0)
    taken = [len(counts) - 1]
    for n in range(values - 1, 0, -1):
        taken.append(int(before[n, taken[-1]]))
    return np.array(taken[::-1]) - most


def _costs(counts: np.ndarray) -> np.ndarray:
    """Return what lies between two integers costs, each going to the nearer of them.

    Result: (from, to), infinite where `to` does not lie behind `from`.
    """
    size = len(counts)
    places = np.arange(size)
    costs = np.full((size, size), np.inf)
    for low in range(size):
        # (to, place)
        distance = np.minimum(places - low, places[:, None] - places)
        squares = np.where(distance > 0, np.square(distance), 0) @ counts
        costs[low, low + 1 :] = squares[low + 1 :]
    return costs
