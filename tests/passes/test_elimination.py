"""The order in which greedy elimination removes, what every step costs, and who may go."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.layout import Groups, Tile
from tilewright.passes.prune import elimination, obs
from tilewright.passes.prune.elimination import Elimination, eliminate

TILES = [Tile(1), Tile(4), Tile(3, 2), Tile(5, 4)]


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights and a damped Hessian of inputs that depend on each other."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(inputs, inputs)) @ r.normal(size=(inputs, 10 * inputs))
    return r.normal(size=(outputs, inputs)), obs.damped(x @ x.T, 0.01)


def errors(
    weights: np.ndarray, hessian: np.ndarray, tile: Tile, found: Elimination
) -> np.ndarray:
    """Return each row's output error behind each step, refitted from scratch."""
    rows, blocks = tile.grid(weights.shape)
    result = np.empty(found.order.shape)
    kept = np.ones((rows, blocks), dtype=bool)
    for step, gone in enumerate(found.order.T):
        kept[np.arange(rows), gone] = False
        change = weights - obs.refit(weights, hessian, tile, kept)
        by_output = np.einsum("oi,ij,oj->o", change, hessian, change)
        result[:, step] = np.add.reduceat(by_output, np.arange(0, len(weights), tile.outputs))
    return result


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("delayed", [128, 8])
def test_losses_sum_up_to_the_output_error_behind_every_step(
    tile: Tile, delayed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "_DELAYED", delayed)
    weights, hessian = problem(10, 22)
    _, blocks = tile.grid(weights.shape)
    found = eliminate(weights, np.linalg.inv(hessian), tile, blocks - 1)
    true = errors(weights, hessian, tile, found)
    np.testing.assert_allclose(np.cumsum(found.losses, axis=1), true, rtol=1e-9)


def test_several_blocks_in_a_round_have_losses_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elimination, "_ROUNDS", 4)
    weights, hessian = problem(8, 24)
    found = eliminate(weights, np.linalg.inv(hessian), Tile(4, 2), 11)
    true = errors(weights, hessian, Tile(4, 2), found)
    np.testing.assert_allclose(np.cumsum(found.losses, axis=1), true, rtol=1e-9)


def test_in_float32_losses_are_right_to_a_few_digits() -> None:
    weights, hessian = problem(8, 64)
    found = eliminate(weights.astype(np.float32), np.linalg.inv(hessian), Tile(4), 63)
    true = errors(weights, hessian, Tile(4), found)
    # Hinv shrinks by its condition number, some hundreds, while rounding of 6e-8 stays.
    np.testing.assert_allclose(np.cumsum(found.losses, axis=1), true, rtol=1e-4)


def test_fewer_steps_are_the_first_of_more() -> None:
    weights, hessian = problem(6, 20)
    inverse = np.linalg.inv(hessian)
    few, all_ = (eliminate(weights, inverse, Tile(2), steps) for steps in (7, 19))
    assert (few.order == all_.order[:, :7]).all()
    np.testing.assert_allclose(few.losses, all_.losses[:, :7], rtol=1e-12)


@given(
    inputs=st.integers(2, 20),
    groups=st.integers(1, 5),
    delayed=st.sampled_from([3, 128]),
    rounds=st.sampled_from([2, 128]),
)
@settings(deadline=None, max_examples=40)
def test_no_group_loses_more_than_it_may(
    inputs: int, groups: int, delayed: int, rounds: int
) -> None:
    weights, hessian = problem(3, inputs)
    r = np.random.default_rng(inputs)
    of = r.permutation(np.arange(inputs) % groups)
    limits = r.integers(0, np.bincount(of, minlength=groups) + 1)
    steps = int(limits.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elimination, "_DELAYED", delayed)
        patch.setattr(elimination, "_ROUNDS", rounds)
        found = eliminate(weights, np.linalg.inv(hessian), Tile(1), steps, Groups(of, limits))
    for row in found.order:
        assert len(set(row)) == steps
        assert (np.bincount(of[row], minlength=groups) == limits).all()


def test_one_group_of_all_is_no_restriction() -> None:
    weights, hessian = problem(4, 12)
    inverse = np.linalg.inv(hessian)
    two = Groups(np.repeat([0, 1], 12)[:12], np.array([7, 0]))
    free, grouped = (eliminate(weights, inverse, Tile(2), 7, g) for g in (None, two))
    assert (free.order == grouped.order).all()


def shares(rows: int, most: int, total: int) -> list[tuple[int, ...]]:
    return [s for s in product(range(most + 1), repeat=rows) if sum(s) == total]


@given(
    st.integers(1, 4).flatmap(
        lambda steps: st.lists(
            st.lists(st.integers(0, 9), min_size=steps, max_size=steps), min_size=1, max_size=4
        )
    ),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_no_shares_lose_less_than_those_that_won(
    losses: list[list[int]], data: st.DataObject
) -> None:
    table = np.array(losses, float)
    rows, most = table.shape
    total = data.draw(st.integers(0, table.size))
    sums = np.concatenate([np.zeros((rows, 1)), np.cumsum(table, axis=1)], axis=1)

    def lost(share: np.ndarray | tuple[int, ...]) -> float:
        return float(sums[np.arange(rows), np.asarray(share)].sum())

    won = obs.won(table, total)
    assert won.sum() == total
    best = min(lost(share) for share in shares(rows, most, total))
    # What the rows' sums are above the largest convex curves below them: at most one is.
    above = [
        min(
            (sums[row, b] - sums[row, a]) * (k - a) / (b - a) + sums[row, a]
            for a in range(k + 1)
            for b in range(k, most + 1)
            if a < b
        )
        if 0 < k < most
        else sums[row, k]
        for row, k in enumerate(won)
    ]
    gaps = [sums[row, k] - curve for (row, k), curve in zip(enumerate(won), above, strict=True)]
    assert sum(gap > 1e-9 for gap in gaps) <= 1
    assert best - 1e-9 <= lost(won) <= best + sum(gaps) + 1e-9


def test_a_cheap_step_behind_a_dear_one_wins_only_with_it() -> None:
    # Sorting the losses themselves would give both rows one step, for 5 + 2.
    assert obs.won(np.array([[5.0, 1.0], [2.0, 2.5]]), 2).tolist() == [0, 2]
    # Together, 5 and 1 are cheaper than 4 and 4.
    assert obs.won(np.array([[5.0, 1.0], [4.0, 4.0]]), 2).tolist() == [2, 0]


def test_equal_losses_are_shared_from_the_first_row_on() -> None:
    assert obs.won(np.ones((3, 4)), 6).tolist() == [4, 2, 0]
    assert obs.won(np.ones((3, 0)), 0).tolist() == [0, 0, 0]
