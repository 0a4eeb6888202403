"""Budgets shared out among places."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.passes.prune.allocate import (
    Curve,
    Place,
    cheapest,
    entropic,
    entropic_shares,
    erdos_renyi_kernel,
    erdos_renyi_kernel_densities,
    nearest,
    savings,
    threshold,
    uniform,
)

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


# ---- places ----


places = st.builds(
    lambda entries, kept, step: Place("a", entries, max(0, entries - kept), step, 1.0),
    st.integers(1, 200),
    st.integers(0, 20),
    st.integers(1, 16),
)


@settings(deadline=None)
@given(places, st.floats(0, 1))
def test_counts_are_whole_steps_within_what_may_go_and_none_is_nearer(
    place: Place, share: float
) -> None:
    possible = range(0, place.most + 1, place.step)
    count = nearest(place, share)
    assert count in possible
    wanted = share * place.entries
    # Beyond rounding of a share times a count.
    assert abs(count - wanted) <= min(abs(n - wanted) for n in possible) + 1e-9


def test_uniform_takes_the_same_share_everywhere() -> None:
    many = [Place("a", 64, 48, 8, 2.0), Place("b", 100, 80, 1, 3.0), Place("c", 64, 8, 8, 1.0)]
    assert uniform(many, 0.5) == [32, 50, 8]
    assert savings(many, [32, 50, 8]) == 64 + 150 + 8


def test_threshold_saves_a_share_of_everything_where_it_costs_least() -> None:
    many = [Place("dear", 10, 10, 1, 1.0), Place("free", 10, 6, 2, 1.0)]
    costs = [np.arange(1.0, 11), np.zeros(10)]
    assert threshold(many, costs, 0.2) == [0, 4]
    assert threshold(many, costs, 0.5) == [4, 6]


# ---- densities ----

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(
            st.integers(1, 300), st.integers(1, 300), st.integers(1, 7), st.integers(1, 7)
        ),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(shapes, st.floats(0, 1))
def test_densities_come_to_the_target_and_none_is_above_one(
    many: list[tuple[int, ...]], density: float
) -> None:
    sizes = np.array([np.prod(shape) for shape in many], dtype=float)
    densities = erdos_renyi_kernel_densities(many, density)
    assert (densities >= 0).all()
    assert (densities <= 1).all()
    assert abs(densities @ sizes - density * sizes.sum()) <= 1
    # Below 1 they are proportional to the sum of the shape over its product.
    free = densities < 1
    factors = densities[free] * sizes[free] / np.array([sum(shape) for shape in many])[free]
    np.testing.assert_allclose(factors, factors.max(initial=0), rtol=1e-9, atol=1e-12)
    # And the others would be above it at that factor.
    if free.any():
        full = np.array([sum(shape) for shape in many])[~free] / sizes[~free]
        assert (full * factors.max() >= 1 - 1e-9).all()


def test_small_layers_stay_dense_where_large_ones_pay() -> None:
    # 0.1 of 1,048,976 + 288: the stem is kept, the rest is left to the large one.
    found = erdos_renyi_kernel_densities([(32, 1, 3, 3), (1024, 1024)], 0.1)
    np.testing.assert_allclose(found, [1, (0.1 * (288 + 1024**2) - 288) / 1024**2])


def test_entries_go_by_the_density_of_the_weights() -> None:
    many = [Place("a", 32, 24, 8, 1.0, (64, 32)), Place("b", 512, 448, 8, 1.0, (512, 512))]
    densities = erdos_renyi_kernel_densities([(64, 32), (512, 512)], 0.25)
    assert erdos_renyi_kernel(many, 0.75) == [
        nearest(many[0], 1 - densities[0]),
        nearest(many[1], 1 - densities[1]),
    ]


# ---- entropy ----


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.floats(0.01, 0.5))
def test_entropic_shares_average_to_the_target_where_none_is_cut(
    alike: list[float], share: float
) -> None:
    found = entropic_shares(alike, share, epsilon=0.5)
    if (found < 0.85).all():
        np.testing.assert_allclose(found.sum(), len(alike) * share, rtol=1e-12)
    assert (found <= 0.85).all()
    assert found.mean() <= share + 1e-12
    order = np.argsort(alike)
    assert (np.diff(found[order]) >= 0).all()


def test_entropic_shares_are_those_of_the_formula() -> None:
    alike = np.array([0.9, 0.95, 0.99])
    weights = np.exp(-(1 - alike) / 0.1)
    np.testing.assert_allclose(entropic_shares(alike, 0.3), 0.9 * weights / weights.sum())
    np.testing.assert_allclose(
        entropic_shares([1.0, 0.0], 0.5, epsilon=0.01), [0.85, 0], atol=1e-9
    )


def test_no_other_shares_with_that_average_remove_less_for_their_entropy() -> None:
    r = np.random.default_rng(0)
    alike = r.uniform(0.7, 1, size=5)

    def objective(shares: np.ndarray) -> float:
        part = shares / shares.sum()
        return float(part @ (1 - alike) + 0.1 * (part @ np.log(part)))

    least = objective(entropic_shares(alike, 0.1))
    assert all(objective(r.dirichlet(np.ones(5))) >= least for _ in range(200))


def test_blocks_that_change_little_lose_most() -> None:
    many = [Place("busy", 64, 56, 8, 1.0), Place("idle", 64, 56, 8, 1.0)]
    # Shares of 0.091 and 0.409, of 64 in steps of 8.
    assert entropic(many, [0.8, 0.95], 0.25) == [8, 24]


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_the_ends_are_nothing_and_all_that_may_go(sparsity: float) -> None:
    many = [Place("a", 64, 56, 8, 1.0, (64, 64)), Place("b", 10, 9, 1, 1.0, (10, 64))]
    expected = [round(sparsity * place.most) for place in many]
    assert uniform(many, sparsity) == expected
    assert erdos_renyi_kernel(many, sparsity) == expected
    assert threshold(many, [np.ones(64), np.ones(10)], sparsity) == expected
