"""Orders of rows and columns that put what is unimportant into whole tiles."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.layout import Tile
from tilewright.passes.prune import obs
from tilewright.passes.prune.matching import (
    Rows,
    order,
    pruned_mass,
    row_order,
    tetris,
    weight_scores,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.abs(np.random.default_rng(seed).standard_normal(shape)))


def scaled(size: int) -> np.ndarray:
    """Return noise whose rows and columns have lognormal sizes, of sigma 0.7."""
    sizes = np.exp(0.7 * np.random.default_rng(3).standard_normal((2, size)))
    return np.asarray(noise(size, size, seed=13) * sizes[0][:, None] * sizes[1])


def lost(scores: np.ndarray, tile: Tile, rate: float, rounds: int = 100) -> float:
    """Return the pruned share of all scores after some rounds."""
    rows, columns, kept = tetris(scores, tile, rate, rounds)
    stays = obs.spread(kept, tile, scores.shape)
    return float(scores[rows][:, columns][~stays].sum() / scores.sum())


def rows_of(scores: np.ndarray, height: int, removed: int) -> Rows:
    return Rows(scores, np.arange(len(scores))[:, None], height, removed)


def test_scrambled_tiles_are_found_again() -> None:
    """54 % of the 16 x 16 tiles are zero; then rows and columns are shuffled."""
    r = np.random.default_rng(0)
    zero = np.zeros(256, dtype=bool)
    zero[:138] = True
    tiles = r.permutation(zero).reshape(16, 16)
    scores = noise(256, 256) * ~np.kron(tiles, np.ones((16, 16), dtype=bool))
    scores = scores[r.permutation(256)][:, r.permutation(256)]
    assert lost(scores, Tile(16, 16), 138 / 256, rounds=0) > 0.45
    assert lost(scores, Tile(16, 16), 138 / 256) == 0.0


@pytest.mark.parametrize(
    ("scores", "side", "before", "after"),
    [
        # The seed's figures, half of the tiles dropped: .462 -> .429, .347 -> .155 (single
        # weights: .095) and .410 -> .158.
        (noise(256, 256), 8, 0.462, 0.429),
        (scaled(256), 8, 0.347, 0.155),
        (scaled(256), 16, 0.39, 0.158),
    ],
)
def test_scaled_rows_gain_much_and_noise_gains_little(
    scores: np.ndarray, side: int, before: float, after: float
) -> None:
    tile = Tile(side, side)
    # Draws of the sizes differ: before any exchange by a few percent, after all by less.
    assert lost(scores, tile, 0.5, rounds=0) == pytest.approx(before, abs=0.04)
    assert lost(scores, tile, 0.5) == pytest.approx(after, abs=0.015)


def test_no_round_raises_the_pruned_mass() -> None:
    masses = [lost(scaled(48), Tile(4, 4), 0.5, rounds) for rounds in range(8)]
    assert masses[-1] < masses[0]
    assert all(later <= earlier for earlier, later in pairwise(masses))


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_any_shape_gives_orders_and_as_many_tiles_as_asked_for(
    outputs: int, inputs: int, height: int, width: int, rate: float
) -> None:
    rows, columns, kept = tetris(noise(outputs, inputs), Tile(height, width), rate)
    assert sorted(rows) == list(range(outputs))
    assert sorted(columns) == list(range(inputs))
    assert kept.shape == (-(-outputs // height), -(-inputs // width))
    assert np.count_nonzero(~kept) == round(rate * kept.size)


def test_rows_that_need_the_same_inputs_come_together() -> None:
    kinds = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 4))
    scores = noise(32, 40) * (np.random.default_rng(1).random((8, 40)) < 0.5)[kinds]
    removed = int((scores == 0).sum(axis=1).min())
    place = rows_of(scores, 4, removed)
    assert pruned_mass(place, np.arange(32)) > 0
    found = order([place])
    assert pruned_mass(place, found) == 0
    assert all(len(set(group)) == 1 for group in kinds[found].reshape(8, 4))


def test_an_order_of_six_rows_is_one_of_the_best() -> None:
    for seed in range(5):
        place = rows_of(noise(6, 8, seed=seed) ** 2, 3, 4)
        masses = [pruned_mass(place, np.array(p)) for p in permutations(range(6))]
        found = pruned_mass(place, order([place]))
        # A local search: not always the best, but among the best quarter of the orders.
        assert found <= np.quantile(masses, 0.25) + 1e-12


@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 8), st.integers(0, 30))
def test_an_order_never_costs_more_than_the_old_one(
    outputs: int, blocks: int, height: int, seed: int
) -> None:
    place = rows_of(noise(outputs, blocks, seed=seed), height, blocks // 2)
    found = order([place])
    assert sorted(found) == list(range(outputs))
    # Sums in another order: float64's rounding.
    assert pruned_mass(place, found) <= pruned_mass(place, np.arange(outputs)) * (1 + 1e-12)


def test_layers_that_share_a_dimension_add_up_their_losses() -> None:
    """One layer would pair rows 0 1 | 2 3, the other 0 2 | 1 3, for it gains more."""
    one = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], float)
    other = np.array([[9, 0], [9, 0], [0, 9], [0, 9]], float)
    alone = order([rows_of(one, 2, 1)])
    assert {frozenset(pair) for pair in alone.reshape(2, 2).tolist()} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    heavier = rows_of(np.hstack([other, other[:, ::-1]]), 2, 2)
    assert order([heavier, rows_of(np.ones((4, 2)), 2, 1)]).tolist() == [0, 1, 2, 3]


def test_an_entry_of_several_rows_moves_with_all_of_them() -> None:
    """Two heads of four depths: one order of depths for both, and tiles of two rows."""
    scores = np.zeros((8, 4))
    scores[[0, 2, 4, 6], :2] = 1
    scores[[1, 3, 5, 7], 2:] = 1
    place = Rows(scores, np.arange(8).reshape(2, 4).T, 2, 2)
    found = order([place])
    assert pruned_mass(place, np.arange(4)) == 8
    assert pruned_mass(place, found) == 0
    assert {frozenset(pair) for pair in found.reshape(2, 2).tolist()} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }


def test_an_order_is_the_same_every_time() -> None:
    place = rows_of(noise(40, 24), 4, 12)
    np.testing.assert_array_equal(order([place]), order([place]))


def test_scores_are_errors_after_a_refit() -> None:
    """Taking one weight out of a row and refitting the rest costs w^2 / Hinv_kk."""
    r = np.random.default_rng(0)
    w, x = r.standard_normal((3, 5)), r.standard_normal((5, 40))
    hessian = x @ x.T
    scores = weight_scores(w, np.diag(np.linalg.inv(hessian)), 1)
    for k in range(5):
        rest = np.delete(x, k, axis=0)
        refitted = np.linalg.lstsq(rest.T, (w @ x).T, rcond=None)[0].T
        errors = np.square(refitted @ rest - w @ x).sum(axis=1)
        np.testing.assert_allclose(scores[:, k], errors, rtol=1e-5)  # scores are float32


def test_rows_may_be_grouped_without_moving_and_lose_less() -> None:
    """Rows of four kinds, each of which needs inputs of its own, one after the other."""
    r = np.random.default_rng(0)
    weights = (
        r.standard_normal((16, 24))
        * np.where(r.random((4, 24)) < 0.4, 1, 0.05)[np.arange(16) % 4]
    )
    x = r.standard_normal((24, 200))
    hessian = x @ x.T
    tile = Tile(4)
    found = row_order(weights, np.diag(np.linalg.inv(hessian)), tile, 0.5)
    matched = np.empty_like(weights)
    matched[found] = obs.prune(weights[found], hessian, tile, 0.5)

    def loss(pruned: np.ndarray) -> float:
        return float(np.square((pruned - weights) @ x).sum())

    assert loss(matched) < 0.2 * loss(obs.prune(weights, hessian, tile, 0.5))
    assert all(len(set(group % 4)) == 1 for group in found.reshape(4, 4))


def test_exchanges_are_those_that_trying_all_pairs_finds() -> None:
    """One round: along the rows, then along the columns of what that gave."""
    scores = scaled(12) + 0.01
    tile = Tile(3, 3)
    rows, columns, _ = tetris(scores, tile, 0.5, rounds=1)
    sums = scores.reshape(4, 3, 4, 3).sum(axis=(1, 3))
    dropped = np.zeros(16, dtype=bool)
    dropped[np.argsort(sums, axis=None)[:8]] = True
    gone = np.kron(dropped.reshape(4, 4), np.ones((3, 3)))

    def exchanged(x: np.ndarray, gone: np.ndarray) -> list[int]:
        found = list(range(len(x)))
        while True:
            swaps = []
            for i, j in combinations(range(len(x)), 2):
                other = list(found)
                other[i], other[j] = other[j], other[i]
                swaps.append(((x[other] * gone).sum(), other))
            mass, best = min(swaps)
            if mass >= (x[found] * gone).sum() * (1 - 1e-6):
                return found
            found = best

    expected = exchanged(scores, gone)
    assert rows.tolist() == expected
    assert columns.tolist() == exchanged(scores[expected].T, gone.T)


def test_rounds_of_assignments_lower_the_mass_of_high_tiles() -> None:
    place = rows_of(scaled(96)[:, :64] ** 2, 16, 32)
    start, settled = (pruned_mass(place, order([place], rounds)) for rounds in (0, 20))
    assert settled < 0.995 * start
