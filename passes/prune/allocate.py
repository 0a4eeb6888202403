"""How much to take from each of several places, so that together it hurts least."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """What removing the first 1, 2, ... entries of a place costs, and what each one saves.

    `costs` are cumulative; entries go `step` at a time, as far as there are costs.
    """

    costs: np.ndarray
    saves: float
    step: int = 1


def cheapest(curves: Sequence[Curve], budget: float) -> list[int]:
    """Return how many entries to remove from each place to save `budget` in all.

    What saves most for what it costs goes first: for convex costs and small steps the best
    there is. Less is saved where there are no more entries; what saves nothing stays.
    """
    removed = [0] * len(curves)
    saved = 0.0
    heap: list[tuple[float, int]] = []

    def offer(index: int) -> None:
        costs, saves, step = curves[index]
        after = removed[index] + step
        if saves and after <= len(costs):
            before = costs[removed[index] - 1] if removed[index] else 0.0
            if np.isinf(costs[after - 1]):
                return
            heapq.heappush(heap, (float(costs[after - 1] - before) / (saves * step), index))

    for index in range(len(curves)):
        offer(index)
    while heap and saved < budget:
        _, index = heapq.heappop(heap)
        removed[index] += curves[index].step
        saved += curves[index].saves * curves[index].step
        offer(index)
    return removed
