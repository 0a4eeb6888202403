"""How sparsity grows when it is reached in several rounds."""

import numpy as np
from numpy.typing import ArrayLike


def cubic(step: ArrayLike, first: float, last: float, start: float, end: float) -> np.ndarray:
    """Return the sparsity at a step: `start` up to step `first`, `end` from step `last` on.

    Much goes early, while there is much that is superfluous, and ever less towards the end:
    end + (start - end) (1 - t)^3, t running from 0 to 1 between the two steps. Zhu & Gupta,
    "To prune, or not to prune" (2017), used by GraNet. Takes and returns arrays of any shape.
    """
    passed = np.clip((np.asarray(step, dtype=float) - first) / (last - first), 0, 1)
    # A mean of the two, so that both ends are met exactly.
    left = (1 - passed) ** 3
    return np.asarray(start * left + end * (1 - left))
