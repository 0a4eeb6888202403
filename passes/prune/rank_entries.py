"""Rank the entries of dimensions by any criterion that is a score."""

from collections.abc import Callable, Mapping

import numpy as np

from tilewright.dimensions import Dimension
from tilewright.passes.prune.score_by_inputs import (
    discriminations,
    leverages,
    utilizations,
)
from tilewright.passes.prune.score_entries import (
    Entries,
    Scores,
    l2,
    magnitude,
    reconstruction,
    taylor,
)

SCORES: Mapping[str, Callable[[Entries], Scores]] = {
    "magnitude": magnitude,
    "l2": l2,
    "taylor": taylor,
    "leverage": leverages,
    "utilization": utilizations,
    "reconstruction": reconstruction,
    "discrimination": discriminations,
}


def ranked(criterion: str, asked: Entries) -> dict[Dimension, np.ndarray]:
    """Return the entries of each dimension from the least important on; ties by number."""
    scores = SCORES[criterion](asked)
    return {d: np.argsort(each, kind="stable") for d, each in scores.items()}
