"""One level for each of several places, under a budget."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.passes.prune.knapsack import best_levels, spdy

Table = list[np.ndarray]


@st.composite
def places(draw: st.DrawFn) -> tuple[Table, Table]:
    """Return whole costs and savings of up to four places, in no order and of no shape."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    whole = st.integers(0, 9)
    costs, saves = (
        [np.array(draw(st.lists(whole, min_size=n, max_size=n)), float) for n in sizes]
        for _ in "cs"
    )
    return costs, saves


def total(table: Table, levels: Sequence[int]) -> float:
    return float(sum(values[level] for values, level in zip(table, levels, strict=True)))


def every(table: Table) -> list[tuple[int, ...]]:
    return list(product(*(range(len(values)) for values in table)))


@settings(deadline=None)
@given(places(), st.integers(1, 20))
def test_no_choice_that_saves_enough_costs_less(
    problem: tuple[Table, Table], budget: int
) -> None:
    costs, saves = problem
    # A bucket is a whole number here, so nothing is rounded.
    found = best_levels(costs, saves, budget, buckets=budget)
    enough = [levels for levels in every(costs) if total(saves, levels) >= budget]
    if enough:
        assert total(saves, found) >= budget
        assert total(costs, found) == min(total(costs, levels) for levels in enough)
    else:
        assert total(saves, found) == sum(values.max() for values in saves)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_rounded_savings_reach_the_budget_and_cost_no_more_than_a_little_more_would(
    seed: int,
) -> None:
    r = np.random.default_rng(seed)
    costs = [r.random(4) for _ in range(5)]
    saves = [r.random(4) for _ in range(5)]
    budget = 0.6 * sum(values.max() for values in saves)
    found = best_levels(costs, saves, budget, buckets=200)
    # The share of a bucket that is let go: 1e-6 of 1/200 of the budget, for each of five.
    assert total(saves, found) >= budget * (1 - 1e-7)
    # Each of five places loses less than a bucket by rounding.
    wide = [levels for levels in every(costs) if total(saves, levels) >= budget * (1 + 5 / 200)]
    assert total(costs, found) <= min(total(costs, levels) for levels in wide)


def test_a_budget_that_takes_everything_is_met_despite_rounding() -> None:
    saves = [np.linspace(0, 1, 11) * macs for macs in (0.1, 0.3, 7.7)]
    assert best_levels([np.arange(11.0)] * 3, saves, 8.1) == [10, 10, 10]


def test_a_dip_behind_a_hill_is_found() -> None:
    # Greedy steps would take from the first place: 1 a step is less than 5.
    costs = [np.array([0.0, 1, 2, 3, 4]), np.array([0.0, 5, 5, 5, 0.5])]
    assert best_levels(costs, [np.arange(5.0)] * 2, 4) == [0, 4]


def test_what_breaks_the_answers_is_never_chosen() -> None:
    costs = [np.array([0.0, np.inf]), np.array([0.0, 100.0])]
    saves = [np.array([0.0, 5.0]), np.array([0.0, 2.0])]
    assert best_levels(costs, saves, 2) == [0, 1]
    assert best_levels(costs, saves, 3) == [0, 1]  # as much as there is
    assert best_levels(costs, saves, 0) == [0, 0]


IMPORTANCE = (9, 0.1, 4, 0.2, 1, 0.05, 2, 0.5)
SQUARES, STEPS = [np.arange(5.0) ** 2] * 8, [np.arange(5.0)] * 8


def harm(levels: Sequence[int]) -> float:
    """Judge a choice by what nobody told: some places hurt far more than others."""
    return float(np.asarray(IMPORTANCE) @ np.square(levels))


def test_a_search_finds_which_places_hurt() -> None:
    plain = harm(best_levels(SQUARES, STEPS, 16))
    best = harm(
        best_levels([i * c for i, c in zip(IMPORTANCE, SQUARES, strict=True)], STEPS, 16)
    )
    searches = [
        spdy(SQUARES, STEPS, 16, harm, seed=seed, evaluations=250, buckets=16)
        for seed in range(6)
    ]
    assert all(total(STEPS, found) >= 16 for found in searches)
    # Some searches end in a dip.
    assert np.mean([harm(found) for found in searches]) - best < 0.06 * (plain - best)


def test_a_search_judges_each_choice_once_and_repeats_with_its_seed() -> None:
    judged: list[tuple[int, ...]] = []

    def judge(levels: Sequence[int]) -> float:
        judged.append(tuple(levels))
        return harm(levels)

    found = [spdy(SQUARES, STEPS, 16, judge, seed=3, evaluations=50, buckets=16) for _ in "ab"]
    half = len(judged) // 2
    assert judged[:half] == judged[half:]
    assert found[0] == found[1]
    assert len(set(judged)) == half <= 50
    assert judged[0] == tuple(best_levels(SQUARES, STEPS, 16))


def test_without_time_to_search_the_plain_choice_stands() -> None:
    costs, saves = [np.arange(3.0)] * 2, [np.arange(3.0)] * 2
    assert spdy(costs, saves, 2, lambda _: 1.0, evaluations=1) == best_levels(costs, saves, 2)
