"""How sparsity grows in rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.passes.prune.schedule import cosine, cubic

shares = st.floats(0, 1)


@settings(deadline=None)
@given(shares, shares, st.integers(0, 100), st.integers(1, 100))
def test_it_starts_and_ends_where_it_should_and_never_turns_back(
    start: float, end: float, first: int, length: int
) -> None:
    steps = np.arange(first - 5, first + length + 6)
    found = cubic(steps, first, first + length, start, end)
    assert (found[:6] == start).all()
    assert (found[-6:] == end).all()
    # Beyond rounding of a mean of two numbers below 1.
    assert (np.diff(found) * np.sign(end - start) >= -1e-15).all()


def test_it_is_the_published_formula() -> None:
    # Half way an eighth of the way is left.
    np.testing.assert_allclose(cubic(15, 10, 20, 0.1, 0.9), 0.9 - 0.8 / 8)


def test_most_goes_early() -> None:
    assert (np.diff(cubic(np.arange(11), 0, 10, 0.0, 0.9), n=2) < 0).all()


@settings(deadline=None)
@given(shares, st.integers(0, 100), st.integers(1, 100))
def test_the_cosine_falls_from_its_start_to_exactly_nothing(
    start: float, first: int, length: int
) -> None:
    found = cosine(np.arange(first - 5, first + length + 6), first, first + length, start)
    assert (found[:6] == start).all()
    assert (found[-6:] == 0).all()
    assert (np.diff(found) <= 0).all()
    assert cosine(first + length / 2, first, first + length, start) == pytest.approx(start / 2)
