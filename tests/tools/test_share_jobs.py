"""Jobs are shared out among devices; what fails on one is done by another."""

import signal
import threading
import time

import pytest

from tilewright.errors import DeviceFailed
from tilewright.protocol import silent
from tilewright.tools.share_jobs import share_jobs


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert share_jobs(range(20), 3, lambda n: n * n, silent) == [n * n for n in range(20)]


def test_devices_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(_: int) -> int:
        both.wait()
        return threading.get_ident()

    assert len(set(share_jobs(range(2), 2, meet, silent))) == 2


def test_a_job_that_a_device_lost_is_done_once_more_and_told() -> None:
    told: list[str] = []
    lost = [3, 4]

    def run(number: int) -> int:
        if number in lost:
            lost.remove(number)
            raise DeviceFailed(f"Device pi{number} went away.")
        return number

    assert share_jobs(range(6), 1, run, told.append) == list(range(6))
    assert [line.split(".")[0] for line in told] == [
        "Device pi3 went away",
        "Device pi4 went away",
    ]


def test_where_every_device_is_gone_the_last_failure_is_raised() -> None:
    def run(_: int) -> int:
        raise DeviceFailed("Device pi4 went away.")

    with pytest.raises(DeviceFailed, match="pi4"):
        share_jobs(range(3), 2, run, silent)


def test_other_errors_are_not_retried() -> None:
    runs: list[int] = []

    def run(number: int) -> int:
        runs.append(number)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        share_jobs(range(3), 1, run, silent)
    assert runs == [0]


def test_an_error_on_one_device_lets_the_others_begin_nothing_more() -> None:
    both, raised = threading.Barrier(2, timeout=10), threading.Event()
    runs: list[int] = []

    def run(number: int) -> None:
        runs.append(number)
        both.wait()
        if number == 1:
            raised.set()
            raise ZeroDivisionError
        raised.wait(10)
        # Long against the instant between raising and stopping.
        time.sleep(0.3)

    with pytest.raises(ZeroDivisionError):
        share_jobs(range(20), 2, run, silent)
    assert sorted(runs) == [0, 1]


def test_a_job_that_a_device_lost_is_not_done_again_behind_an_error() -> None:
    both, raised = threading.Barrier(2, timeout=10), threading.Event()
    runs: list[int] = []

    def run(number: int) -> None:
        runs.append(number)
        both.wait()
        if number == 1:
            raised.set()
            raise ZeroDivisionError
        raised.wait(10)
        time.sleep(0.3)
        raise DeviceFailed("Device pi4 went away.")

    with pytest.raises(ZeroDivisionError):
        share_jobs(range(2), 2, run, silent)
    assert sorted(runs) == [0, 1]


def test_ctrl_c_lets_devices_end_what_they_do_and_begin_nothing_more() -> None:
    both, main = threading.Barrier(2, timeout=10), threading.main_thread().ident
    assert main is not None
    runs: list[int] = []
    noticed = threading.Event()

    def run(number: int) -> None:
        runs.append(number)
        if both.wait() == 0:
            signal.pthread_kill(main, signal.SIGINT)
        noticed.wait(10)
        time.sleep(1)  # for a busy machine to say so to all threads

    def notice(*_: object) -> None:
        noticed.set()
        raise KeyboardInterrupt

    # A job in the background of a shell is born deaf to the signal.
    before = signal.signal(signal.SIGINT, notice)
    try:
        with pytest.raises(KeyboardInterrupt):
            share_jobs(range(20), 2, run, silent)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(runs) == [0, 1]


def test_nothing_to_do_is_done() -> None:
    assert share_jobs([], 4, lambda n: n, silent) == []
