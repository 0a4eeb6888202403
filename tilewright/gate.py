"""The gate: is what was measured now worse than before, by more than a budget?

Exact figures (bytes, kernels, a score) are compared as they are. Times are noisy, and are
judged by ratios: each run gives now / before, taken in turns on one machine by a process each.
Where memory happens to lie makes a process faster or slower for all its life, so only runs in
new processes, on new copies of the files, are independent, and only they count as evidence. A
run's ratio is that of the fastest calls, for what disturbs a call only ever adds to its time
(Chen & Revels, "Robust benchmarking in noisy environments", 2016).

The test of times is sequential. After 8, 16 and 24 runs it looks at the band that holds the
median ratio: from the (k + 1)-th smallest to the (k + 1)-th largest.

    it ends below 1 + budget                   a slow-down by the budget is ruled out: passed
    it begins above 1 + budget, from 16 on     slower by more than the budget: failed
    it begins above 1, after 24                slower, and it may be by the budget: failed
    else, after 24                             the noise hides the budget: undecided

So what seems slower is always measured again before it fails. The band is that of the sign
test (Conover, "Practical Nonparametric Statistics", 3.4), and asks nothing of the noise's
shape: heavy tails, bursts and several states of the machine are alike to it, and drift cancels
within each ratio. Two artifacts that are timed in turns are put in order by a coin for every
run, so that where both are the same a ratio is above 1 as often as below, whatever the noise,
and runs need not be independent: at most 0.6 % of these gates fail where nothing changed. At
most 1 % pass what is slower by the budget, where runs are independent. That this then fails,
and is not left undecided, takes less noise than that: in 95 % of the gates where the ratios of
runs have a standard deviation of 3/4 of the budget. What is slower by less passes, unless its
band reaches the budget: the threshold lies below it by as much as the noise leaves open.

Against a baseline the ratios are quotients, of a ratio to a reference now and of one then. The
same holds as long as both are of one distribution. What shifts the ratio to the reference for
a whole session (a kernel, a clock, a neighbour that suits one of the two) moves all quotients
alike, and looks like a change of the artifact. All later gates are compared with the same 24
runs, too: where those were lucky, more than 0.6 % of them fail.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tilewright.measurement import Samples

# (runs, k): the looks, and how many runs lie beyond an end of their band. By the binomial
# distribution any of the bands ends below the true median in 0.93 % of the gates at most, and
# any but the first, after which nothing fails, begins above it in 0.54 %.
LOOKS = ((8, 0), (16, 2), (24, 5))
FEWEST_RUNS, MOST_RUNS = LOOKS[0][0], LOOKS[-1][0]


class Status(StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"  # the noise is too large to tell
    UNJUDGED = "not judged"  # there is nothing to compare with


@dataclass(frozen=True)
class Verdict:
    """A check's outcome. `ratio` is now / before; None where before is 0 or there is none.

    `low` and `high` are the band that holds it: that of an exact figure is the ratio itself.
    """

    status: Status
    reason: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0


def run_ratio(now: Sequence[Samples], before: Sequence[Samples]) -> float:
    """Return the median over the rounds of a run of now / before, of each the fastest call."""
    pairs = zip(now, before, strict=True)
    return statistics.median(n.min_ms / b.min_ms for n, b in pairs)


def judge(
    before: float | None, now: float | None, budget: float, *, more_is_better: bool = False
) -> Verdict:
    """Compare exact figures, none negative: worse by more than `budget` (a share) fails.

    A figure that is there only before or only now is not judged.
    """
    if before is None or now is None:
        when = "now" if before is None else "before"
        return Verdict(Status.UNJUDGED, f"there is such a figure only {when}")
    if math.isnan(now):
        return Verdict(Status.FAILED, "it is not a number any more")
    ratio = now / before if before else (1.0 if now == before else None)
    worse, allowed = (before - now if more_is_better else now - before), budget * before
    # A product that is off in its last digit is not beyond the budget.
    if worse > allowed and not math.isclose(worse, allowed):
        return Verdict(Status.FAILED, "worse than the budget allows", ratio, ratio, ratio)
    said = "the same" if worse == 0 else "better" if worse < 0 else "within the budget"
    return Verdict(Status.PASSED, said, ratio, ratio, ratio)


def judge_runs(run: Callable[[int], float], budget: float) -> Verdict:
    """Call `run(0)`, `run(1)`, ... until their ratios, now / before, settle the matter.

    A ratio is above 1 where now is slower. `budget` is a share, and above 0.
    """
    assert budget > 0, "a budget of nothing cannot be told from no change"
    ratios: list[float] = []
    for runs, beyond in LOOKS:
        ratios += [run(index) for index in range(len(ratios), runs)]
        ordered = sorted(ratios)
        low, high = ordered[beyond], ordered[-1 - beyond]
        found = (statistics.median(ordered), low, high, runs)
        if high < 1 + budget:
            return Verdict(Status.PASSED, "a slow-down by the budget is ruled out", *found)
        if low > 1 + budget and runs > FEWEST_RUNS:
            return Verdict(Status.FAILED, "slower by more than the budget", *found)
    if low > 1:
        return Verdict(Status.FAILED, "slower, and it may be by the whole budget", *found)
    return Verdict(Status.UNDECIDED, "the noise hides a slow-down by the budget", *found)
