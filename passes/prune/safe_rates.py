"""How much may go from each place before the answers get worse than a floor.

What was published about PSViT and PrimeSVT says in which order they look at layers, not how
they decide; the decisions here are ours.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from tilewright.errors import UnusableInput
from tilewright.passes.prune.allocate import RATES, Place, counts_of, savings, uniform

# How well the network does without so many entries of each place at once: its accuracy, or how
# well it agrees with the dense one. Higher is better.
Judge = Callable[[Sequence[int]], float]


def sensitivity(places: Sequence[Place], agreement: Judge, floor: float) -> list[int]:
    """Remove from each place as much as it tolerates alone, as far as the floor holds together.

    First the largest of RATES that holds the floor everywhere at once is found.
    Then each place alone is tried at every rate. Each gets the highest rate that leaves the
    agreement above one threshold, common to all, which is lowered as far as the floor holds;
    that is searched by halving, so a better one may exist where less pruning agrees worse.
    The better of both, by what it saves, is returned; both were seen to hold the floor.

    Raises UnusableInput where the floor does not hold even with nothing removed.
    Putra et al., "PSViT" (2026): the three steps.
    """
    _check(places, agreement, floor)
    best = [0] * len(places)
    for rate in RATES:
        everywhere = uniform(places, rate)
        if agreement(everywhere) < floor:
            break
        best = everywhere
    whole = [0] * len(places)
    alone = [
        {n: agreement([*whole[:i], n, *whole[i + 1 :]]) for n in counts_of(place)}
        for i, place in enumerate(places)
    ]
    thresholds = {a for by_count in alone for a in by_count.values() if a >= floor}
    tolerated = [
        [max((n for n, a in by_count.items() if a >= least), default=0) for by_count in alone]
        for least in sorted(thresholds)
    ]
    # The thresholds ascend, so those that hold the floor stand behind those that do not.
    first = bisect_left(tolerated, True, key=lambda removed: agreement(removed) >= floor)
    return max(
        [best, *tolerated[first : first + 1]], key=lambda removed: savings(places, removed)
    )


def prioritized(
    places: Sequence[Place], agreement: Judge, floor: float, budget: float
) -> list[int]:
    """Remove from the largest place down as much as the floor allows, until `budget` is saved.

    In each place RATES are tried, ascending, until the agreement falls below the floor, and the
    last one that held it is kept: places that do not stand the first one stay whole. A budget
    of infinity leaves the floor alone to end it.

    Raises UnusableInput where the floor does not hold even with nothing removed.
    Putra et al., "PrimeSVT" (2026): largest first, in one go, under two constraints.
    """
    _check(places, agreement, floor)
    sizes = [-place.saves * place.entries for place in places]
    removed = [0] * len(places)
    for index in sorted(range(len(places)), key=sizes.__getitem__):
        for count in counts_of(places[index]):
            if savings(places, removed) >= budget:
                return removed
            tried = [*removed[:index], count, *removed[index + 1 :]]
            if agreement(tried) < floor:
                break
            removed = tried
    return removed


def _check(places: Sequence[Place], agreement: Judge, floor: float) -> None:
    found = agreement([0] * len(places))
    if found < floor:
        raise UnusableInput(
            f"The answers are to agree to {floor:.4g}, but with nothing removed they do to "
            f"{found:.4g}. Ask for less."
        )
