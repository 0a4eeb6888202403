"""Round weights one input after the other, and make up for it in those that follow.

Frantar et al., "GPTQ" (2023), section 3: with the Hessian H of a layer's inputs, and U the
upper Cholesky factor of its inverse, rounding column j moves the columns behind it by the error
over U_jj times row j of U. That is optimal brain surgery on all rows at once, in a fixed order.
"""

from collections.abc import Callable

import numpy as np

_TOGETHER = 128  # columns, before what they owe is carried to all that follow


def rounded(
    weights: np.ndarray, hessian: np.ndarray, nearest: Callable[[int, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return weights (outputs, inputs) that are values of `nearest`, whatever these are.

    `hessian` is damped, (inputs, inputs). `nearest(j, column)` rounds what column j has become.
    """
    w = weights.astype(np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    result = np.empty_like(w)
    for start in range(0, w.shape[1], _TOGETHER):
        stop = min(start + _TOGETHER, w.shape[1])
        owed = np.empty((len(w), stop - start))
        for j in range(start, stop):
            result[:, j] = nearest(j, w[:, j])
            owed[:, j - start] = (w[:, j] - result[:, j]) / upper[j, j]
            w[:, j + 1 : stop] -= np.outer(owed[:, j - start], upper[j, j + 1 : stop])
        w[:, stop:] -= owed @ upper[start:stop, stop:]
    return result
