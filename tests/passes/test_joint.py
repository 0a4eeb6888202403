"""Entries of a dimension that several readers lose together."""

import numpy as np
import pytest

from tilewright.layout import Tile
from tilewright.passes.prune import obs
from tilewright.passes.prune.joint import Problem, cheapest_entries, reading, squared_sums

ENTRIES = 7


def problem(outputs: int, width: int, seed: int) -> tuple[Problem, np.ndarray]:
    """Return a reader of `width` columns an entry, in shuffled order, and these columns."""
    r = np.random.default_rng(seed)
    size = ENTRIES * width
    x = r.standard_normal((size, 3)) @ r.standard_normal((3, 40))
    x += 0.3 * r.standard_normal(x.shape)
    columns = r.permutation(size).reshape(ENTRIES, width)
    return Problem(r.standard_normal((outputs, size)), obs.damped(x @ x.T, 0.01)), columns


def cost(given: Problem, alive: np.ndarray) -> float:
    moved = given.refitted(alive) - given.target
    return float(np.trace(moved @ given.hessian @ moved.T))


def without(given: Problem, columns: np.ndarray, entries: list[int]) -> np.ndarray:
    alive = np.ones(len(given.hessian), dtype=bool)
    alive[columns[entries]] = False
    return alive


@pytest.mark.parametrize("widths", [(1,), (1, 1), (1, 3), (2, 4, 1)])
def test_each_step_takes_the_entry_that_costs_all_readers_least(
    widths: tuple[int, ...],
) -> None:
    readers = [problem(5 + width, width, seed) for seed, width in enumerate(widths)]
    shares = [1.0, 0.3, 2.0][: len(widths)]
    readings = [
        reading(given, columns, np.ones(len(given.hessian), dtype=bool), share)
        for (given, columns), share in zip(readers, shares, strict=True)
    ]
    order = cheapest_entries(readings, ENTRIES, 5).tolist()

    def loss(entries: list[int]) -> float:
        return sum(
            share * cost(given, without(given, columns, entries))
            for (given, columns), share in zip(readers, shares, strict=True)
        )

    for step, taken in enumerate(order):
        gone = order[:step]
        left = [entry for entry in range(ENTRIES) if entry not in gone]
        assert taken == min(left, key=lambda entry: loss([*gone, entry]))


def test_one_reader_loses_what_a_tile_of_all_its_outputs_would() -> None:
    given, _ = problem(6, 2, seed=3)
    columns = np.arange(2 * ENTRIES).reshape(ENTRIES, 2)
    every = np.ones(2 * ENTRIES, dtype=bool)
    order = cheapest_entries([reading(given, columns, every, 1.0)], ENTRIES, 3)
    kept = obs.tile_masks(given.target, np.linalg.inv(given.hessian), Tile(6, 2), 3 / ENTRIES)
    assert sorted(order) == np.flatnonzero(~kept[0]).tolist()


def test_what_has_gone_already_counts() -> None:
    """Two dimensions say the same: once one of them is gone the other one is needed."""
    r = np.random.default_rng(0)
    cause, other = r.standard_normal((2, 60))
    noise = 0.5 * r.standard_normal(60)
    x = np.stack([cause, 0.2 * other, cause, other + noise])
    given = Problem(np.ones((3, 4)), obs.damped(x @ x.T, 1e-6))
    second = np.array([[2], [3]])
    alive = np.ones(4, dtype=bool)
    assert cheapest_entries([reading(given, second, alive, 1.0)], 2, 1).tolist() == [0]
    alive[0] = False
    assert cheapest_entries([reading(given, second, alive, 1.0)], 2, 1).tolist() == [1]


def test_by_magnitude_readers_count_relative_to_all_they_hold() -> None:
    columns = np.arange(3)[:, None]
    small, large = np.array([[1.0, 1, 3]]), 100 * np.array([[1.0, 2, 1]])
    found = squared_sums([(small, columns), (large, columns)])
    np.testing.assert_allclose(found, [1 / 11 + 1 / 6, 1 / 11 + 4 / 6, 9 / 11 + 1 / 6])
