import time

import numpy as np
import pytest

from tilewright.threads import _openblas, one_blas_thread, spread_over_cores


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    assert spread_over_cores(slow_first, range(6)) == [0, 1, 4, 9, 16, 25]


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        spread_over_cores(lambda item: 1 // item, [1, 0])


def test_blas_runs_on_one_thread_only_meanwhile() -> None:
    _ = np.ones((2, 2)) @ np.ones((2, 2))  # the library is loaded
    before = [count() for _, count in _openblas()]
    with one_blas_thread():
        assert {count() for _, count in _openblas()} <= {1}
    assert [count() for _, count in _openblas()] == before
