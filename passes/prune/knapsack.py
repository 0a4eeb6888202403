"""One level for each of several places, so that together they save enough and cost least.

A level of place i costs `costs[i][l]` and saves `saves[i][l]`, whatever the shape of the curve;
what places cost adds up. `best_levels` solves that by dynamic programming, as Frantar &
Alistarh do in "Optimal Brain Compression" (2022). That costs add up is often wrong: `spdy` then
searches for weights of the places' costs under which the sum leads to a better choice, by the
word of a judge who sees the whole (Frantar & Alistarh, "SPDY", 2022).
"""

from collections.abc import Callable, Sequence

import numpy as np

_BUCKETS = 10_000  # that a budget is cut into
_AT_RANDOM = 0.25  # of the evaluations, before the search starts from the best of them
_CHANGED = 0.1  # of the places, whose weights change at once when the search starts


def best_levels(
    costs: Sequence[np.ndarray],
    saves: Sequence[np.ndarray],
    budget: float,
    buckets: int = _BUCKETS,
) -> list[int]:
    """Return the level of each place that together save `budget` and cost least.

    Costs may be infinite, for levels that must not be. Savings are rounded down to `buckets` of
    the budget: the choice is the best there is of those that reach the budget after rounding.
    Where none does, each place gets the level of finite cost that saves most. Ties go to the
    lower level.
    """
    if budget <= 0:
        return [int(np.argmin(cost)) for cost in costs]
    # A share of a bucket is let go, for sums and quotients that are not exact.
    units = [np.floor(save / budget * buckets + 1e-6).astype(np.int64) for save in saves]
    # best[b] is the least cost of the places so far for saving b buckets or more.
    best = np.full(buckets + 1, np.inf)
    best[0] = 0.0
    taken = []
    for cost, unit in zip(costs, units, strict=True):
        totals = np.stack([_later(best, n) + c for c, n in zip(cost, unit, strict=True)])
        taken.append(totals.argmin(axis=0).astype(np.int32))
        best = totals.min(axis=0)
    if not np.isfinite(best[-1]):
        finite = [np.where(np.isfinite(c), s, -1.0) for c, s in zip(costs, saves, strict=True)]
        return [int(np.argmax(save)) for save in finite]
    chosen = []
    left = buckets
    for unit, level in zip(units[::-1], taken[::-1], strict=True):
        chosen.append(int(level[left]))
        left = max(left - int(unit[chosen[-1]]), 0)
    return chosen[::-1]


def _later(best: np.ndarray, buckets: int) -> np.ndarray:
    """Return best[max(b - buckets, 0)] for every b."""
    beyond = min(buckets, len(best))
    return np.concatenate([np.full(beyond, best[0]), best[: len(best) - beyond]])


def spdy(
    costs: Sequence[np.ndarray],
    saves: Sequence[np.ndarray],
    budget: float,
    judge: Callable[[Sequence[int]], float],
    *,
    seed: int = 0,
    evaluations: int = 200,
    buckets: int = _BUCKETS,
) -> list[int]:
    """Return the levels that `judge` gives the least, of those that `best_levels` may return.

    Each place's costs are multiplied by a weight above 0, up to 1. Weights are tried so many
    times: equal ones first, so the judge never finds the result worse than `best_levels`; then
    random ones, a quarter of the time; then the best so far, changed in a tenth of the places,
    in fewer and fewer, in one at last. `judge(levels)` is asked once about each choice.
    """
    r = np.random.default_rng(seed)
    judged: dict[tuple[int, ...], float] = {}

    def error(weights: np.ndarray) -> float:
        weighted = [w * cost for w, cost in zip(weights, costs, strict=True)]
        choice = tuple(best_levels(weighted, saves, budget, buckets))
        if choice not in judged:
            judged[choice] = judge(choice)
        return judged[choice]

    places = len(costs)
    best = np.ones(places)
    least = error(best)
    widest = max(1, round(_CHANGED * places))
    for done in np.arange(1, evaluations) / evaluations:
        weights = best.copy()
        left = (1 - done) / (1 - _AT_RANDOM)  # above 1: still at random
        changed = places if left > 1 else max(1, round(left * widest))
        weights[r.choice(places, changed, replace=False)] = 1 - r.random(changed)
        found = error(weights)
        if found <= least:  # on a plateau the search walks on
            best, least = weights, found
    chosen = min(judged, key=judged.__getitem__)
    return list(chosen)
