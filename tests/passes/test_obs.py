from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.layout import Pattern, Tile
from tilewright.passes.prune import elimination, obs


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and a damped Hessian of inputs that depend on each other."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(inputs, inputs)) @ r.normal(size=(inputs, 10 * inputs))
    return r.normal(size=(outputs, inputs)), obs.damped(x @ x.T, 0.01)


def error(weights: np.ndarray, pruned: np.ndarray, hessian: np.ndarray) -> float:
    change = weights - pruned
    return float(np.trace(change @ hessian @ change.T))


def greedy(weights: np.ndarray, hessian: np.ndarray, tile: Tile, sparsity: float) -> np.ndarray:
    """Remove block by block in float64, straight from the formulas."""
    result = weights.copy()
    width = tile.inputs
    blocks = weights.shape[1] // width
    for top in range(0, len(weights), tile.outputs):
        w, inverse = result[top : top + tile.outputs], np.linalg.inv(hessian)
        left = list(range(blocks))
        for _ in range(round(sparsity * blocks)):
            spans = {n: np.arange(n * width, n * width + width) for n in left}
            costs = {
                n: np.trace(w[:, b] @ np.linalg.inv(inverse[np.ix_(b, b)]) @ w[:, b].T)
                for n, b in spans.items()
            }
            cheapest = min(left, key=lambda n: costs[n])
            b = spans[cheapest]
            step = np.linalg.inv(inverse[np.ix_(b, b)]) @ inverse[b]
            w -= w[:, b] @ step
            inverse = inverse - inverse[:, b] @ step
            w[:, b] = 0
            left.remove(cheapest)
            # Rounding leaves removed rows of Hinv near zero; keep them out of later steps.
            inverse[b, :] = 0
            inverse[:, b] = 0
            inverse[b, b] = 1
    return result


@pytest.mark.parametrize("tile", [Tile(1), Tile(4), Tile(3), Tile(16), Tile(4, 2), Tile(8, 4)])
def test_tiles_and_values_are_those_of_the_formulas(tile: Tile) -> None:
    weights, hessian = problem(10, 24)
    expected = greedy(weights, hessian, tile, 0.6)
    # The last step of the formulas is the exact refit, as is ours: both are float64.
    np.testing.assert_allclose(obs.prune(weights, hessian, tile, 0.6), expected, atol=1e-9)


def test_many_delayed_updates_lead_to_the_same_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, hessian = problem(12, 60, seed=3)
    inverse = np.linalg.inv(hessian)
    at_once = obs.tile_masks(weights, inverse, Tile(4), 0.7)
    monkeypatch.setattr(elimination, "_DELAYED", 5)
    monkeypatch.setattr(elimination, "_BATCH_BYTES", 1)
    assert (obs.tile_masks(weights, inverse, Tile(4), 0.7) == at_once).all()


@pytest.mark.parametrize("removed", [0, 2, 12, 22, 24])
def test_the_refit_is_that_of_least_squares_however_much_goes(removed: int) -> None:
    """Few that go are taken away, many are left out: 64 rows make either worth its start."""
    weights, hessian = problem(64, 24)
    r = np.random.default_rng(removed)
    kept = r.permuted(np.tile(np.arange(24) >= removed, (64, 1)), axis=1)
    found = obs.refit(weights, hessian, Tile(1), kept)
    for row, alive, own in zip(found, kept, weights, strict=True):
        # Least squares says that what is left has no gradient.
        gradient = (row - own) @ hessian
        np.testing.assert_allclose(gradient[alive], 0, atol=1e-9 * np.abs(hessian).max())
        assert not row[~alive].any()


def test_a_ranking_knows_what_each_count_loses() -> None:
    weights, hessian = problem(12, 24)
    found = obs.ranking(weights, np.linalg.inv(hessian), Tile(4), 20)
    for removed in (1, 7, 20):
        fitted = obs.refit(weights, hessian, Tile(4), found.without(removed))
        lost = found.losses[:, :removed].sum()
        # The search is in float32.
        assert lost == pytest.approx(error(weights, fitted, hessian), rel=1e-3)


def test_greedy_removal_of_one_input_is_the_best_of_all() -> None:
    for seed in range(5):
        weights, hessian = problem(4, 8, seed)
        found = obs.prune(weights, hessian, Tile(4), 1 / 8)
        every = [
            obs.refit(weights, hessian, Tile(4), np.arange(8)[None] != gone)
            for gone in range(8)
        ]
        best = min(error(weights, pruned, hessian) for pruned in every)
        assert error(weights, found, hessian) == pytest.approx(best, rel=1e-9)


def test_greedy_removal_of_half_is_close_to_the_best_support() -> None:
    ratios = []
    for seed in range(4):
        weights, hessian = problem(2, 8, seed)
        found = error(weights, obs.prune(weights, hessian, Tile(2), 0.5), hessian)
        masks = [np.isin(np.arange(8), support)[None] for support in combinations(range(8), 4)]
        every = [obs.refit(weights, hessian, Tile(2), mask) for mask in masks]
        ratios.append(found / min(error(weights, pruned, hessian) for pruned in every))
    assert min(ratios) >= 1 - 1e-9  # nothing beats the enumeration of all 70 supports
    # Greedy is no optimum; over these four problems it is within a quarter on average.
    assert np.mean(ratios) < 1.25


def test_with_the_identity_for_a_hessian_obs_is_magnitude() -> None:
    weights, _ = problem(8, 20)
    pruned = obs.prune(weights, np.eye(20), Tile(4), 0.6)
    kept = obs.spread(obs.smallest_tiles(weights, Tile(4), 0.6), Tile(4), weights.shape)
    np.testing.assert_allclose(pruned, np.where(kept, weights, 0), atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_with_equal_independent_inputs_obs_is_magnitude_exactly(scale: float) -> None:
    weights, _ = problem(8, 20)
    inverse = np.eye(20) / scale
    for tile in (Tile(1), Tile(4), Tile(4, 2)):
        by_loss = obs.tile_masks(weights, inverse, tile, 0.6)
        assert (by_loss == obs.smallest_tiles(weights, tile, 0.6)).all()
    for taps in (1, 4):
        found = obs.pattern_mask(weights, inverse, Pattern(2, 4), taps)
        assert (found == obs.smallest_of_pattern(weights, Pattern(2, 4), taps)).all()
    # The whole layer's smallest weights go where rows may differ.
    everywhere = obs.ranking(weights, inverse, Tile(1), 19).without_cheapest(12)
    limit = np.sort(np.abs(weights), axis=None)[round(0.6 * 20) * 8]
    assert (everywhere == (np.abs(weights) >= limit)).all()


def test_half_of_the_weights_go_far_better_by_obs_than_by_magnitude() -> None:
    """32 inputs have 24 causes and noise of 0.3 in common; four seeds, 16 outputs each."""
    plain, refitted = [], []
    for seed in range(4):
        r = np.random.default_rng(seed)
        causes = r.normal(size=(32, 24)) @ r.normal(size=(24, 320))
        x = causes + 0.3 * r.normal(size=(32, 320))
        hessian, weights = obs.damped(x @ x.T, 1e-4), r.normal(size=(16, 32))
        found = error(weights, obs.prune(weights, hessian, Tile(1), 0.5), hessian)
        kept = obs.smallest_tiles(weights, Tile(1), 0.5)
        plain.append(error(weights, np.where(kept, weights, 0), hessian) / found)
        fitted = obs.refit(weights, hessian, Tile(1), kept)
        refitted.append(error(weights, fitted, hessian) / found)
    # About 8.4 and 3.2 are reported for such inputs; they vary by half from seed to seed.
    assert np.mean(plain) == pytest.approx(10.6, rel=0.05)
    assert np.mean(refitted) == pytest.approx(3.5, rel=0.05)


@pytest.mark.parametrize("tile", [Tile(1), Tile(4), Tile(4, 2)])
def test_rows_that_suffer_less_lose_more(tile: Tile) -> None:
    weights, hessian = problem(24, 24)
    weights *= np.repeat([0.1, 1, 3], 8)[:, None]
    inverse = np.linalg.inv(hessian)
    even = obs.tile_masks(weights, inverse, tile, 0.5)
    found = obs.ranking(weights, inverse, tile, 24)
    kept = found.without_cheapest(obs.removed_of(found.blocks, 0.5))
    assert kept.sum() == even.sum()
    assert kept.any(axis=1).all()
    third = len(kept) // 3
    assert kept[:third].sum() < kept[third : 2 * third].sum() < kept[2 * third :].sum()
    errors = [
        error(weights, obs.refit(weights, hessian, tile, k), hessian) for k in (kept, even)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_every_row_keeps_a_tile_however_little_it_loses_by_it() -> None:
    weights, hessian = problem(8, 12)
    weights[:4] = 0
    kept = obs.ranking(weights, np.linalg.inv(hessian), Tile(4), 11).without_cheapest(6)
    assert kept.sum(axis=1).tolist() == [1, 11]
    one = obs.ranking(weights, np.linalg.inv(hessian), Tile(4, 12), 1).without_cheapest(0)
    assert one.all()


def test_two_of_four_neighbours_stay_and_no_single_choice_was_better() -> None:
    weights, hessian = problem(5, 8)
    inverse = np.linalg.inv(hessian)
    kept = obs.pattern_mask(weights, inverse, Pattern(2, 4))
    assert (kept.reshape(5, 2, 4).sum(axis=2) == 2).all()
    found = error(weights, obs.prune_pattern(weights, hessian, Pattern(2, 4)), hessian)
    halves = [np.isin(np.arange(4), half) for half in combinations(range(4), 2)]
    every = [
        obs.refit(weights[[row]], hessian, Tile(1), np.concatenate([a, b])[None])
        for row in range(5)
        for a in halves
        for b in halves
    ]
    rows = np.repeat(np.arange(5), 36)
    errors = np.array(
        [error(weights[[row]], v, hessian) for row, v in zip(rows, every, strict=True)]
    )
    best = errors.reshape(5, 36).min(axis=1).sum()
    # Greedy is no optimum; here it is within a third of the best of all 36 masks a row.
    assert best * (1 - 1e-9) <= found < 4 / 3 * best
    magnitude = obs.smallest_of_pattern(weights, Pattern(2, 4))
    assert found < error(weights, obs.refit(weights, hessian, Tile(1), magnitude), hessian)


def test_groups_of_a_convolution_run_along_channels() -> None:
    weights, hessian = problem(3, 8 * 9)
    kept = obs.pattern_mask(weights, np.linalg.inv(hessian), Pattern(2, 4), taps=9)
    # (outputs, channels, taps): two of each four channels, at each tap.
    assert (kept.reshape(3, 2, 4, 9).sum(axis=2) == 2).all()


@given(
    outputs=st.integers(1, 4),
    channels=st.integers(1, 9),
    taps=st.integers(1, 3),
    pattern=st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(1, 2), Pattern(3, 5)]),
)
@settings(deadline=None, max_examples=40)
def test_a_last_group_keeps_its_share_rounded_up(
    outputs: int, channels: int, taps: int, pattern: Pattern
) -> None:
    weights, hessian = problem(outputs, channels * taps)
    for kept in (
        obs.pattern_mask(weights, np.linalg.inv(hessian), pattern, taps),
        obs.smallest_of_pattern(weights, pattern, taps),
    ):
        by_tap = kept.reshape(outputs, channels, taps)
        for first in range(0, channels, pattern.of):
            group = by_tap[:, first : first + pattern.of]
            share = -(-group.shape[1] * pattern.kept // pattern.of)
            assert (group.sum(axis=1) == share).all()


@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 17),
    tile=st.builds(Tile, st.integers(1, 5), st.integers(1, 4)),
    sparsity=st.floats(0, 0.95),
)
@settings(deadline=None, max_examples=40)
def test_what_is_left_is_the_least_squares_fit(
    outputs: int, inputs: int, tile: Tile, sparsity: float
) -> None:
    weights, hessian = problem(outputs, inputs)
    pruned = obs.prune(weights, hessian, tile, sparsity)
    kept = obs.tile_masks(weights, np.linalg.inv(hessian), tile, sparsity)
    mask = obs.spread(kept, tile, weights.shape)
    blocks = -(-inputs // tile.inputs)
    assert (kept.sum(axis=1) == blocks - min(round(sparsity * blocks), blocks - 1)).all()
    assert (pruned[~mask] == 0).all()
    # The gradient of trace((V - W) H (V - W)^T) vanishes wherever V may move.
    gradient = (pruned - weights) @ hessian
    np.testing.assert_allclose(gradient[mask], 0, atol=1e-8 * np.abs(hessian).max())


def test_a_shifted_input_is_made_up_for() -> None:
    r = np.random.default_rng(0)
    weights, x = r.normal(size=(3, 5)), r.normal(size=(5, 200))
    bent = np.eye(5) + 0.3 * r.normal(size=(5, 5))
    x_now = bent @ x
    gram = x_now @ x_now.T
    hessian = obs.damped(gram, 1e-9)
    target = obs.asymmetric_target(weights, weights @ x @ x_now.T, gram, hessian)
    # The inputs differ by an invertible map, which the weights can undo.
    np.testing.assert_allclose(target, weights @ np.linalg.inv(bent), rtol=1e-6)


def test_damping_pulls_the_target_towards_the_weights() -> None:
    r = np.random.default_rng(0)
    weights, x, x_now = r.normal(size=(3, 5)), r.normal(size=(5, 40)), r.normal(size=(5, 40))
    gram, d = x_now @ x_now.T, 7.0
    target = obs.asymmetric_target(weights, weights @ x @ x_now.T, gram, gram + d * np.eye(5))
    gradient = (target @ x_now - weights @ x) @ x_now.T + d * (target - weights)
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


def test_an_input_that_never_fires_goes_first() -> None:
    weights, hessian = problem(4, 8)
    x = np.random.default_rng(0).normal(size=(8, 50))
    x[5] = 0
    hessian = obs.damped(x @ x.T, 0.01)
    kept = obs.tile_masks(weights, np.linalg.inv(hessian), Tile(4), 1 / 8)
    assert np.flatnonzero(~kept[0]).tolist() == [5]
    assert (obs.damped(np.zeros((2, 2)), 0.01) == np.eye(2)).all()


def test_tiles_of_equal_cost_go_in_order() -> None:
    kept = obs.tile_masks(np.ones((2, 6)), np.eye(6), Tile(2), 0.5)
    assert kept.tolist() == [[False] * 3 + [True] * 3]
    assert obs.smallest_tiles(np.ones((2, 6)), Tile(2), 0.5).tolist() == kept.tolist()
