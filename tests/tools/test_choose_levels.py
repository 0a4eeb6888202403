"""Levels are chosen as trying all of them would, and corrected by what is measured."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from tilewright.tools.choose_levels import (
    Levels,
    LevelTable,
    TimedLayers,
    at_floor,
    within_budget,
)


@pytest.fixture
def table() -> LevelTable:
    """Five places at four levels: more sparsity is faster and hurts more, but for one place."""
    r = np.random.default_rng(0)
    places = []
    for index in range(5):
        errors = np.concatenate([[0.0], np.sort(r.random(3))])
        ms = r.uniform(1, 3) * np.array([1.0, 0.8, 0.6, 0.3])
        places.append(TimedLayers((f"layer_{index}",), errors, ms))
    places[2] = places[2]._replace(ms=np.array([1.0, 1.2, 1.1, 1.3]))  # nothing to be won
    steps = 2.0 + sum(place.ms[0] for place in places)
    return LevelTable(places, 1.5 * steps, steps)


def every(table: LevelTable) -> list[Levels]:
    return list(product(range(4), repeat=len(table.places)))


def kept(judge: Callable[[Levels], float]) -> tuple[Callable[[Levels], float], list[Levels]]:
    """Return a judge that remembers, and the list of what it was asked the first time."""
    known: dict[Levels, float] = {}

    def ask(levels: Levels) -> float:
        if levels not in known:
            known[levels] = judge(levels)
        return known[levels]

    return ask, known  # type: ignore[return-value]


def test_the_estimate_is_the_latency_less_the_share_of_time_that_is_saved(
    table: LevelTable,
) -> None:
    assert table.estimate(table.dense) == table.dense_ms
    saved = 0.7 * table.places[0].ms[0]
    # Steps took two thirds of the latency: what they save counts half as much again.
    assert table.estimate((3, 0, 0, 0, 0)) == pytest.approx(table.dense_ms - 1.5 * saved)


@pytest.mark.parametrize("share", [0.6, 0.7, 0.8, 0.9])
def test_the_choice_within_a_time_is_the_best_of_all(table: LevelTable, share: float) -> None:
    asked = share * table.dense_ms
    within = [levels for levels in every(table) if table.estimate(levels) <= asked]
    best = min(table.error(levels) for levels in within)
    found = table.choose(asked)
    assert table.estimate(found) <= asked
    assert table.error(found) == pytest.approx(best)
    assert found[2] == 0


def test_errors_that_fall_with_more_sparsity_are_chance() -> None:
    place = TimedLayers(("a",), np.array([0.0, 0.5, 0.1]), np.array([4.0, 3.0, 2.0]))
    table = LevelTable([place, place], 8.0, 8.0)
    assert table.error((1, 2)) == 1.0


def test_the_fastest_is_what_no_other_is_faster_than(table: LevelTable) -> None:
    assert table.estimate(table.fastest) == min(map(table.estimate, every(table)))


@pytest.mark.parametrize("times_slower", [0.8, 1.0, 1.25])
def test_what_is_measured_corrects_what_is_asked(
    table: LevelTable, times_slower: float
) -> None:
    def truth(levels: Levels) -> float:
        return table.dense_ms - times_slower * (table.dense_ms - table.estimate(levels))

    budget = 0.75 * table.dense_ms
    latency, asked = kept(truth)
    choice = within_budget(table, latency, budget)
    assert choice.met
    assert truth(choice.levels) <= budget
    # Of what takes 95 % of the budget at most, none hurts less.
    least = min(table.error(n) for n in every(table) if truth(n) <= 0.95 * budget)
    assert table.error(choice.levels) <= least + 1e-12
    assert len(asked) <= 6


def test_a_budget_that_dense_kernels_hold_prunes_nothing(table: LevelTable) -> None:
    assert within_budget(table, table.estimate, 2 * table.dense_ms) == (table.dense, True)


def test_where_no_choice_is_fast_enough_the_fastest_comes_back(table: LevelTable) -> None:
    budget = 0.99 * table.estimate(table.fastest)
    assert within_budget(table, table.estimate, budget) == (table.fastest, False)


def test_measurements_that_never_fit_come_to_an_end(table: LevelTable) -> None:
    latency, asked = kept(lambda levels: 2 * table.dense_ms)
    choice = within_budget(table, latency, 0.9 * table.dense_ms)
    assert not choice.met
    assert table.fastest in asked
    assert len(asked) <= 7


@pytest.mark.parametrize("floor", [0.3, 0.6, 0.9])
def test_the_fastest_choice_at_a_floor_holds_it(table: LevelTable, floor: float) -> None:
    def agreement(levels: Levels) -> float:
        return 1 - table.error(levels) / len(levels)

    choice = at_floor(table, agreement, floor, halvings=12)
    assert choice.met
    assert agreement(choice.levels) >= floor
    holding = [n for n in every(table) if agreement(n) >= floor]
    fastest = min(map(table.estimate, holding))
    # Twelve halvings, and the budgets that times are cut into.
    assert table.estimate(choice.levels) <= fastest + 2e-3 * table.dense_ms


def test_a_floor_that_the_dense_network_does_not_hold_is_not_met(table: LevelTable) -> None:
    assert at_floor(table, lambda levels: 0.5, 0.9) == (table.dense, False)
