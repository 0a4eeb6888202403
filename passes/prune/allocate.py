"""How much to take from each of several places.

An allocator is a function of `Place`s, of what it wants to know about them and of the target,
that returns how many entries each place loses. What costs a run of the network to find out is
a function that it calls; anything else is passed as it is. Those that run the network to hold a
floor are in safe_rates.py, those that read rankings in tolerance.py.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

# Shares of a place's entries that are tried where trying them takes a run of the network.
RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MOST_ENTROPIC = 0.85  # of a place, which is UniQL's bound


class Place(NamedTuple):
    """Somewhere that entries can be removed from: columns of a layer, channels of a dimension.

    `most` of its `entries` may go, `step` at a time; each saves `saves` (multiplications, bytes
    or milliseconds). `shape` is that of the weights, outputs first, kernel sizes last; `layers`
    are the names of those that lose them.
    """

    name: str
    entries: int
    most: int
    step: int
    saves: float
    shape: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()


def nearest(place: Place, share: float) -> int:
    """Return the count nearest to a share of the entries that may go, in whole steps."""
    steps = min(round(share * place.entries / place.step), place.most // place.step)
    return steps * place.step


def counts_of(place: Place) -> list[int]:
    """Return the counts that RATES come to, each once, ascending, but for 0."""
    return sorted({nearest(place, rate) for rate in RATES} - {0})


def savings(places: Sequence[Place], removed: Sequence[int]) -> float:
    """Return what removing so many entries saves in all."""
    return sum(place.saves * count for place, count in zip(places, removed, strict=True))


def uniform(places: Sequence[Place], sparsity: float) -> list[int]:
    """Remove the same share from every place."""
    return [nearest(place, sparsity) for place in places]


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


def threshold(
    places: Sequence[Place], costs: Sequence[np.ndarray], sparsity: float
) -> list[int]:
    """Save a share of everything where it costs least, by one threshold on cost per saving.

    `costs[i]` is the error of the answers without the first 1, 2, ... entries of place i.
    """
    curves = [
        Curve(cost[: place.most], place.saves, place.step)
        for place, cost in zip(places, costs, strict=True)
    ]
    return cheapest(curves, sparsity * savings(places, [place.entries for place in places]))


def erdos_renyi_kernel(places: Sequence[Place], sparsity: float) -> list[int]:
    """Keep the densities of `erdos_renyi_kernel_densities`, rounded to whole steps."""
    densities = erdos_renyi_kernel_densities([place.shape for place in places], 1 - sparsity)
    return [nearest(p, 1 - density) for p, density in zip(places, densities, strict=True)]


def erdos_renyi_kernel_densities(
    shapes: Sequence[tuple[int, ...]], density: float
) -> np.ndarray:
    """Return densities proportional to sum(shape) / prod(shape), none of them above 1.

    Over all weights together they come to `density`, from 0 to 1: what some layers cannot take
    is shared out among the others in the same proportion. Evci et al., "RigL" (2020), from
    Mocanu et al. (2018); GraNet starts from it.
    """
    sizes = np.array([np.prod(shape) for shape in shapes], dtype=float)
    raw = np.array([np.sum(shape) for shape in shapes], dtype=float) / sizes
    densities = np.ones(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    while free.any():
        left = density * sizes.sum() - sizes[~free].sum()
        densities[free] = raw[free] * left / (raw * sizes)[free].sum()
        over = free & (densities > 1)
        if not over.any():
            break
        # The factor only grows from here on, so whatever is over stays over.
        densities[over] = 1
        free &= ~over
    return densities


def entropic(
    places: Sequence[Place], alikeness: Sequence[float], sparsity: float, epsilon: float = 0.1
) -> list[int]:
    """Remove the shares of `entropic_shares`, rounded to whole steps."""
    shares = entropic_shares(alikeness, sparsity, epsilon)
    return [nearest(p, float(share)) for p, share in zip(places, shares, strict=True)]


def entropic_shares(
    alikeness: Sequence[float] | np.ndarray, share: float, epsilon: float = 0.1
) -> np.ndarray:
    """Return shares to remove that average to `share`: more from blocks that change little.

    `alikeness` is the cosine of what goes into each block and what comes out
    (`criteria.alikeness`), L their number. The shares are
    L share softmax((alikeness - 1) / epsilon), which is what a mean of 1 - alikeness, weighted
    by them, is least for once epsilon times their entropy is taken off. Those above 0.85 are
    cut to that, and the average falls short. Chiang et al., "UniQL" (2025).
    """
    importance = 1 - np.asarray(alikeness, dtype=float)
    shares = len(importance) * share * softmax(-importance / epsilon)
    return np.asarray(np.minimum(shares, _MOST_ENTROPIC))
