"""Remove what is little used as long as hardly any of it matters."""

from collections.abc import Sequence

import numpy as np

from tilewright.passes.prune.allocate import Place

_MOST = 0.99  # of a place's entries, which is FAIR-Pruner's bound


def tolerance_of_differences(
    places: Sequence[Place], rankings: Sequence[tuple[np.ndarray, np.ndarray]], alpha: float
) -> list[int]:
    """Remove from each place what `largest_agreed` allows, of what may go and in whole steps.

    `rankings[i]` are the entries of place i from the least used on, and from the least
    important on (by `criteria.utilization` and `criteria.reconstruction`, or any such pair).
    One `alpha` is for all places: those with much that is superfluous lose more.
    """
    return [
        largest_agreed(
            used, mattering, alpha, np.arange(place.step, place.most + 1, place.step)
        )
        for place, (used, mattering) in zip(places, rankings, strict=True)
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


def largest_agreed(
    least_used: np.ndarray,
    least_important: np.ndarray,
    alpha: float,
    counts: np.ndarray | None = None,
) -> int:
    """Return the largest k up to 0.99 n with ToD(k) <= alpha, or 0.

    ToD rises and falls, so smaller k may have more. `counts` are the k that may be returned,
    from 1 to n; by default all. Lin et al., "FAIR-Pruner" (2025); it agrees with get_ratios of
    their package network-pruner 2.16.
    """
    every = differences(least_used, least_important)
    possible = np.arange(1, len(every) + 1) if counts is None else counts
    possible = possible[possible <= int(_MOST * len(every))]
    return int(possible[every[possible - 1] <= alpha].max(initial=0))
