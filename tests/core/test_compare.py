import math

import numpy as np
import pytest

from tilewright import compare as module
from tilewright.compare import AllValues, Difference, EachValue, compare, worst_of
from tilewright.errors import UnusableInput


def one(expected: object, found: object) -> Difference:
    (difference,) = compare([({"y": np.asarray(expected)}, {"y": np.asarray(found)})])
    return difference


def test_the_largest_error_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPARED", 2)
    found = one([[8.0, 1, 1], [1, 1, 1]], [[8.0, 1, 1], [1, 1, 3]])
    # Of all values' squares, 8^2 and five times 1, four.
    assert found == Difference("y", 2.0, 0.25, pytest.approx(math.sqrt(4 / 69)))  # type: ignore[arg-type]


def test_nan_never_agrees_with_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMPARED", 1)
    numbers, nan = np.ones(3), np.array([1, np.nan, 1])
    apart = one(numbers, nan)
    assert EachValue(1e-3).excess(apart) > 1
    assert AllValues({"y": 0.5}).excess(apart) > 1
    assert one(nan, nan)[1:4] == (0, 0, 0)


def test_all_samples_are_judged_together_and_each_largest_value_within_its_own() -> None:
    pairs = [({"y": np.full(4, 10.0)}, {"y": np.full(4, 10.0)}), ({"y": np.ones(4)},) * 2]
    pairs[1] = ({"y": np.ones(4)}, {"y": np.array([1, 1, 1, 3.0])})
    (found,) = compare(pairs)
    assert found.max_rel_error == 2.0
    assert found.rms_rel_error == pytest.approx(2 / math.sqrt(404))


def test_of_integers_it_is_the_share_that_is_unequal() -> None:
    found = one(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert found == Difference("y", 0.25, 0.25, 0.25, is_float=False)


@pytest.mark.parametrize("size", [1e200, 1.0, 1e-200])
def test_figures_hang_on_no_size_of_the_values(size: float) -> None:
    found = one(np.array([3.0, 4.0]) * size, np.array([3.0, 4.5]) * size)
    assert found.max_rel_error == pytest.approx(0.125)
    assert found.rms_rel_error == pytest.approx(0.1)


def test_where_zeros_are_expected_their_number_says_nothing() -> None:
    few, many = (one(np.zeros(n), np.full(n, 1e-6)).rms_rel_error for n in (1, 10**6))
    assert few == pytest.approx(1e-6)
    assert many == pytest.approx(1e-6)


def test_the_worst_is_the_furthest_beyond_what_is_allowed_and_keeps_its_own_figures() -> None:
    large = Difference("large", 1000.0, 1e-6, 1e-6)
    small = Difference("small", 0.5, 0.5, 0.5)
    assert worst_of([large, small], EachValue(1e-3)) is small
    assert worst_of([large, small], AllValues({"large": 1e-9, "small": 0.9})) is large


def test_other_names_and_shapes_are_no_forms_of_one_model() -> None:
    x = np.zeros(3)
    with pytest.raises(UnusableInput, match=r"different names: \['a'\] and \['b'\]"):
        compare([({"a": x}, {"b": x})])
    with pytest.raises(UnusableInput, match=r'"a" has the shapes \(3,\) and \(1, 3\)'):
        compare([({"a": x}, {"a": x[None]})])
