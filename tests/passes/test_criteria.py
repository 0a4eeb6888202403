"""Scores of entries, against closed forms and other people's code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from tilewright.passes.prune import criteria


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ---- weights and gradients ----


def test_the_norm_of_a_filter_is_taken_over_all_that_it_reads() -> None:
    weights = np.zeros((2, 3, 2, 2), dtype=np.float32)
    weights[0, 1, 0] = 3, 4
    np.testing.assert_array_equal(criteria.filter_norms(weights), [5, 0])


def test_taylor_is_what_a_linear_loss_changes_by_without_an_output() -> None:
    weights, slope = random(4, 3, 2), random(1, 4, 3, 2, seed=1)
    losses = [(slope[0] * weights).sum()]
    for output in range(4):
        without = weights.copy()
        without[output] = 0
        losses.append((slope[0] * without).sum())
    np.testing.assert_allclose(
        criteria.taylor(weights, slope), np.abs(np.subtract(losses[1:], losses[0]))
    )


def test_signs_cancel_between_batches_in_reconstruction_but_not_in_taylor() -> None:
    weights = np.array([[1.0, 2.0]])
    gradients = np.array([[[3.0, 1.0]], [[-3.0, -1.5]]])  # 5 and -6
    np.testing.assert_array_equal(criteria.taylor(weights, gradients), [5.5])
    np.testing.assert_array_equal(criteria.reconstruction(weights, gradients), [1])


def test_single_weights_are_scored_as_outputs_of_their_own() -> None:
    weights, gradients = random(6, 1), random(2, 6, 1, seed=1)
    expected = np.abs(weights * gradients).mean(axis=0)[:, 0]
    np.testing.assert_allclose(criteria.taylor(weights, gradients), expected)


# ---- leverage ----


def test_every_entry_of_a_full_gram_matrix_has_leverage_one() -> None:
    x = random(5, 40)
    # The ridge takes off at most its ratio to the least eigenvalue.
    np.testing.assert_allclose(criteria.leverage(x @ x.T, 1e-8), 1, atol=1e-8)


def test_leverage_without_full_rank_is_the_diagonal_of_the_projector() -> None:
    basis, _ = np.linalg.qr(random(8, 3))
    x = basis @ random(3, 50, seed=1)
    found = criteria.leverage(x @ x.T, 1e-6)
    # A ridge of 1e-6 of eigenvalues around 50, and rounding of 1e-16 against that ridge.
    np.testing.assert_allclose(found, np.diag(basis @ basis.T), atol=1e-6)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
def test_leverages_sum_to_the_effective_dimension(ridge: float) -> None:
    x = random(7, 30)
    eigenvalues = np.linalg.eigvalsh(x @ x.T)
    expected = (eigenvalues / (eigenvalues + ridge)).sum()
    np.testing.assert_allclose(criteria.leverage(x @ x.T, ridge).sum(), expected, rtol=1e-12)


def test_a_duplicate_halves_the_leverage_of_its_twin() -> None:
    x = random(3, 50)
    doubled = np.vstack([x, x[:1]])
    found = criteria.leverage(doubled @ doubled.T, 1e-6)
    np.testing.assert_allclose(found, [0.5, 1, 1, 0.5], atol=1e-6)


# ---- blocks ----


def test_a_block_that_only_scales_is_alike() -> None:
    before = random(6, 4)
    assert criteria.alikeness(before, 3 * before) == pytest.approx(1)
    assert criteria.alikeness(before, -before) == pytest.approx(-1)
    assert criteria.alikeness(np.array([[1.0, 0], [1, 0]]), np.array([[0, 2.0], [5, 0]])) == 0.5


# ---- utilization ----


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
def test_the_distance_of_samples_is_scipys(n: int, m: int, seed: int) -> None:
    x, y = (
        np.sort(random(n, 2, seed=seed), axis=0),
        np.sort(random(m, 2, seed=seed + 1), axis=0),
    )
    expected = [wasserstein_distance(x[:, i], y[:, i]) for i in range(2)]
    np.testing.assert_allclose(criteria.wasserstein(x, y), expected, atol=1e-12)


def test_utilization_is_the_distance_of_the_classes_that_are_farthest_apart() -> None:
    units, classes = random(30, 4), np.repeat([7, 1, 3], [5, 12, 13])
    units[:5, 0] += 4
    expected = [
        max(
            wasserstein_distance(units[classes == a, unit], units[classes == b, unit])
            for a, b in [(7, 1), (7, 3), (1, 3)]
        )
        for unit in range(4)
    ]
    np.testing.assert_allclose(criteria.utilization(units, classes), expected, atol=1e-10)


def test_a_unit_whose_output_does_not_depend_on_the_class_is_not_used() -> None:
    classes = np.repeat([0, 1], [3, 6])
    same = np.concatenate([[1, 2, 3], [1, 1, 2, 2, 3, 3]])
    units = np.stack([same, np.ones(9), classes], axis=1).astype(np.float32)
    np.testing.assert_allclose(criteria.utilization(units, classes), [0, 0, 1], atol=1e-15)
    assert (criteria.utilization(units, np.zeros(9)) == 0).all()


def test_channels_are_compared_on_directions_that_the_seed_chooses() -> None:
    channels, classes = random(40, 2, 6), np.arange(40) % 2
    channels[:, 1] = channels[:, 1] * 0.1 + 3 * classes[:, None]
    first, again, other = (criteria.utilization(channels, classes, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    # A shift by d moves the sample on direction t by |d t|, whose mean over directions is
    # sqrt(2 / pi) |d| / sqrt(features) but for the sphere's curvature.
    shift = np.zeros((40, 1, 6)) + 3 * classes[:, None, None]
    expected = 3 * np.sqrt(2 / np.pi)
    found = criteria.utilization(shift, classes)[0]
    np.testing.assert_allclose(found, expected, rtol=0.15)  # 128 directions
    assert first[1] > first[0]


def test_one_feature_is_compared_as_it_is() -> None:
    units, classes = random(20, 3), np.arange(20) % 3
    one = criteria.utilization(units[:, :, None], classes)
    np.testing.assert_allclose(one, criteria.utilization(units, classes), atol=1e-15)
