"""What FAIR-Pruner's tolerance of differences allows."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.perceptrons import Perceptron, modes, trained
from tilewright.passes.prune import criteria
from tilewright.passes.prune.allocate import Place, uniform
from tilewright.passes.prune.tolerance import (
    differences,
    largest_agreed,
    tolerance_of_differences,
)
from tilewright.threads import one_blas_thread


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, on a busy machine by far."""
    with one_blas_thread():
        yield


ALPHAS = (0.015, 0.05, 0.2)


def ranking(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 20).map(lambda n: n / 20))
def test_it_is_the_largest_count_of_the_definition(n: int, seed: int, alpha: float) -> None:
    used, mattering = ranking(n, seed), ranking(n, seed + 1)

    def difference(k: int) -> float:
        return len(set(used[:k]) & set(mattering[n - k :])) / k

    assert differences(used, mattering).tolist() == [difference(k + 1) for k in range(n)]
    counts = [k for k in range(1, int(0.99 * n) + 1) if difference(k) <= alpha]
    assert largest_agreed(used, mattering, alpha) == max(counts, default=0)
    place = Place("a", n, n * 2 // 3, 3, 1.0)
    steps = [k for k in counts if k <= place.most and k % 3 == 0]
    found = tolerance_of_differences([place], [(used, mattering)], alpha)
    assert found == [max(steps, default=0)]


@pytest.mark.parametrize(("alpha", "count"), [(0.015, 503), (0.05, 512), (0.2, 555)])
def test_rankings_that_agree_lose_one_in_two_less_alpha(alpha: float, count: int) -> None:
    assert largest_agreed(np.arange(1000), np.arange(1000), alpha) == count
    assert count == int(1000 / (2 - alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rankings_that_oppose_each_other_lose_nothing(alpha: float) -> None:
    assert largest_agreed(np.arange(1000), np.arange(1000)[::-1], alpha) == 0


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rankings_that_know_nothing_of_each_other_lose_about_alpha(alpha: float) -> None:
    found = [largest_agreed(ranking(1000, s), ranking(1000, s + 99), alpha) for s in range(20)]
    # Of k entries k^2 / n are among the others by chance, give or take the square root of that,
    # and the largest k that happens to fit is taken.
    assert abs(np.mean(found) - 1000 * alpha) <= 4 * np.sqrt(1000 * alpha)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_more_tolerance_never_loses_less(n: int, seed: int) -> None:
    used, mattering = ranking(n, seed), ranking(n, seed + 1)
    found = [largest_agreed(used, mattering, a) for a in np.linspace(0, 1, 21)]
    assert found == sorted(found)


def scrambled(n: int, by: int) -> np.ndarray:
    """Return a permutation of n numbers that anyone can make again; `by` is coprime to n."""
    return np.arange(n) * by % n


# n, and what orders the rankings; what get_ratios printed at alpha = 0.005, 0.05, 0.2.
GOLDEN = [
    (2, 1, 1, [1, 1, 1]),
    (7, 3, 5, [2, 2, 2]),
    (64, 1, 1, [32, 32, 35]),
    (64, 27, 39, [7, 7, 16]),
    (101, 1, 1, [50, 51, 56]),
    (101, 5, 7, [9, 9, 25]),
    (192, 1, 5, [32, 32, 62]),
    (300, 1, 299, [1, 1, 1]),
    (300, 7, 11, [18, 24, 61]),
    (500, 1, 7, [62, 65, 131]),
    (1000, 1, 1, [501, 512, 555]),
    (1000, 1, 3, [250, 259, 293]),
    (1000, 7, 377, [33, 67, 202]),
]


@pytest.mark.parametrize(("n", "used", "mattering", "counts"), GOLDEN)
def test_counts_are_those_of_the_authors_package(
    n: int, used: int, mattering: int, counts: list[int]
) -> None:
    """The counts were printed by network-pruner 2.16 from PyPI, under torch 2.13:

    get_ratios(None, {"D_0_s2b_idx": scrambled(n, used), "RE_0_hat_s2b_idx":
    scrambled(n, mattering)}, layers2prune=[0], ToD_level=alpha)
    """
    rankings = scrambled(n, used), scrambled(n, mattering)
    assert [largest_agreed(*rankings, alpha) for alpha in (0.005, 0.05, 0.2)] == counts


def test_counts_are_those_of_the_authors_package_where_it_is_installed() -> None:
    package = pytest.importorskip("Network_Pruner")  # pip install network-pruner==2.16 torch
    sizes = [2, 3, 10, 64, 99, 100, 101, 500, 1000]
    for alpha in (0.0, 0.005, 0.015, 0.05, 0.2, 0.5):
        results = {}
        for j, n in enumerate(sizes):
            results[f"D_{j}_s2b_idx"] = ranking(n, j).tolist()
            # From agreement to none.
            shift = ranking(n, j + 50) * (j % 3)
            results[f"RE_{j}_hat_s2b_idx"] = [
                results[f"D_{j}_s2b_idx"][i] for i in np.argsort(np.arange(n) + shift)
            ]
        expected = package.get_ratios(None, results, list(range(len(sizes))), alpha)
        rankings = [
            (np.array(results[f"D_{j}_s2b_idx"]), np.array(results[f"RE_{j}_hat_s2b_idx"]))
            for j in range(len(sizes))
        ]
        places = [Place(str(n), n, n, 1, 1.0) for n in sizes]
        assert tolerance_of_differences(places, rankings, alpha) == expected


def test_counts_are_whole_steps_of_what_may_go() -> None:
    rankings = [(np.arange(1000), np.arange(1000))] * 3
    places = [
        Place("a", 1000, 1000, 1, 1.0),
        Place("b", 1000, 1000, 64, 1.0),
        Place("c", 1000, 100, 8, 1.0),
    ]
    assert tolerance_of_differences(places, rankings, 0.05) == [512, 512, 96]


# ---- a trained network with one layer that is far too wide ----


def ranked(
    net: Perceptron, x: np.ndarray, labels: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the entries of each hidden layer by U-score, and by R-score."""
    used = [criteria.utilization(units, labels) for units in net.activations(x)[1:-1]]
    batches = [net.gradients(x[i : i + 50], labels[i : i + 50]) for i in range(0, len(x), 50)]
    mattering = [
        criteria.reconstruction(
            np.column_stack([net.weights[layer], net.biases[layer]]),
            np.array([np.column_stack(batch[layer]) for batch in batches]),
        )
        for layer in range(len(used))
    ]
    return [(np.argsort(u), np.argsort(r)) for u, r in zip(used, mattering, strict=True)]


def least_used_out(
    net: Perceptron, rankings: list[tuple[np.ndarray, np.ndarray]], removed: list[int]
) -> Perceptron:
    return net.without([used[:n] for (used, _), n in zip(rankings, removed, strict=True)])


def test_the_layer_that_is_too_wide_loses_most_and_uniform_rates_answer_no_better() -> None:
    widths = (24, 192)
    places = [Place(str(width), width, width - 1, 1, 1.0) for width in widths]
    calibration, held = modes(1000, 3), modes(4000, 1)
    gains = []
    for seed in range(3):
        net = trained(widths, modes(4000, 2), seed, steps=1200, decay=1.0)
        rankings = ranked(net, *calibration)

        removed = tolerance_of_differences(places, rankings, 0.05)
        narrow, wide = (n / width for n, width in zip(removed, widths, strict=True))
        assert wide > narrow
        fair = least_used_out(net, rankings, removed)
        # The smallest network of one rate for both layers that has at least as many parameters.
        rates = [uniform(places, rate) for rate in np.arange(0, 1, 0.005)]
        equal = [least_used_out(net, rankings, removed) for removed in rates]
        larger = min((n for n in equal if n.size() >= fair.size()), key=Perceptron.size)
        gains.append(fair.accuracy(*held) - larger.accuracy(*held))
    assert min(gains) >= 0
    assert np.mean(gains) > 0.02
