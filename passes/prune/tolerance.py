"""Remove what is little used as long as hardly any of it matters."""

from collections.abc import Sequence

import numpy as np

from tilewright.passes.prune.allocate import Place

_MOST = 0.99  # of a place's entries, which is FAIR-Pruner's bound


def tolerance_of_differences(
    places: Sequence[Place], rankings: Sequence[tuple[np.ndarray, np.ndarray]], alpha: float
) -> list[int]:
    """Remove from each place what `largest_agreed` allows, in whole steps.

    `rankings[i]` are the entries of place i from the least used on, and from the least
    important on (by `criteria.utilization` and `criteria.reconstruction`, or any such pair).
    One `alpha` is for all places: those with much that is superfluous lose more.
    """
    counts = [largest_agreed(used, mattering, alpha) for used, mattering in rankings]
    return [
        min(count, place.most) // place.step * place.step
        for place, count in zip(places, counts, strict=True)
    ]


def differences(least_used: np.ndarray, least_important: np.ndarray) -> np.ndarray:
    """Return ToD(k) for k = 1 ... n: which share of the k least used matters too.

    Those are the ones among the k most important. Both rankings hold the n entries in ascending
    order. Result: (n,).
    """
    n = len(least_used)
    use, importance = np.empty(n, dtype=int), np.empty(n, dtype=int)
    use[least_used] = importance[least_important] = np.arange(n)
    # An entry is among both from that k on.
    both = np.maximum(use, n - 1 - importance)
    return np.asarray(np.bincount(both, minlength=n).cumsum() / np.arange(1, n + 1))


def largest_agreed(least_used: np.ndarray, least_important: np.ndarray, alpha: float) -> int:
    """Return the largest k up to 0.99 n with ToD(k) <= alpha, or 0.

    ToD rises and falls, so this is not the first k that exceeds alpha. Lin et al.,
    "FAIR-Pruner" (2025); counts equal those of network-pruner 2.16's get_ratios.
    """
    allowed = differences(least_used, least_important)[: int(_MOST * len(least_used))] <= alpha
    return int(np.flatnonzero(allowed)[-1]) + 1 if allowed.any() else 0
