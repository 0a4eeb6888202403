"""Budgets shared out among places: what saves most for what it costs goes first."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.passes.prune.allocate import Curve, cheapest

# Convex costs, as sums of rising steps.
convex = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(
    lambda steps: np.cumsum(sorted(steps)).astype(float)
)


@settings(deadline=None)
@given(st.lists(convex, min_size=1, max_size=3), st.integers(0, 12))
def test_no_other_choice_of_as_many_entries_costs_less(
    costs: list[np.ndarray], budget: int
) -> None:
    removed = cheapest([Curve(c, 1.0) for c in costs], budget)
    assert sum(removed) == min(budget, sum(map(len, costs)))

    def total(choice: tuple[int, ...]) -> float:
        return float(sum(c[n - 1] for c, n in zip(costs, choice, strict=True) if n))

    others = product(*(range(len(c) + 1) for c in costs))
    best = min(total(choice) for choice in others if sum(choice) == sum(removed))
    assert total(tuple(removed)) == best


def test_what_saves_more_goes_first_at_equal_costs() -> None:
    costs = np.array([1.0, 2.0, 3.0])
    assert cheapest([Curve(costs, 1.0), Curve(costs, 5.0)], budget=10) == [0, 2]


def test_entries_go_in_steps_and_never_beyond_the_costs() -> None:
    curve = Curve(np.arange(1, 11, dtype=float), 1.0, step=4)
    assert cheapest([curve], budget=5) == [8]
    assert cheapest([curve], budget=100) == [8]


def test_what_saves_nothing_or_breaks_the_answers_stays() -> None:
    costs = np.array([0.0, 1.0])
    assert cheapest([Curve(costs, 0.0)], budget=5) == [0]
    assert cheapest([Curve(np.array([0.0, np.inf]), 1.0)], budget=5) == [1]


def test_without_a_budget_nothing_goes() -> None:
    assert cheapest([Curve(np.ones(3), 1.0)], budget=0) == [0]
    assert cheapest([], budget=1) == []
