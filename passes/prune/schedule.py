"""How sparsity grows when it is reached in several rounds, and what decays meanwhile."""

import numpy as np
from numpy.typing import ArrayLike


def cubic(step: ArrayLike, first: float, last: float, start: float, end: float) -> np.ndarray:
    """Return the sparsity at a step: `start` up to step `first`, `end` from step `last` on.

    Much goes early, while there is much that is superfluous, and ever less towards the end:
    end + (start - end) (1 - t)^3, t running from 0 to 1 between the two steps. Zhu & Gupta,
    "To prune, or not to prune" (2017), used by GraNet. Takes and returns arrays of any shape.
    """
    # A mean of the two, so that both ends are met exactly.
    left = (1 - _passed(step, first, last)) ** 3
    return np.asarray(start * left + end * (1 - left))


def cosine(step: ArrayLike, first: float, last: float, start: float) -> np.ndarray:
    """Return what falls from `start` at step `first` to 0 at step `last`, by half a cosine.

    That is start (1 + cos(pi t)) / 2, t running from 0 to 1 between the two steps. Takes and
    returns arrays of any shape.
    """
    return np.asarray(start * (1 + np.cos(np.pi * _passed(step, first, last))) / 2)


def _passed(step: ArrayLike, first: float, last: float) -> np.ndarray:
    return np.clip((np.asarray(step, dtype=float) - first) / (last - first), 0, 1)
