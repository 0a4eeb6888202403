"""Share jobs out among devices of one kind, some of which may fail meanwhile."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

from tilewright.errors import DeviceFailed
from tilewright.protocol import Report

J = TypeVar("J")
R = TypeVar("R")

_PATIENCE = 2  # failures in a row after which a thread asks for no further device


def share_jobs(
    jobs: Sequence[J], devices: int, run: Callable[[J], R], report: Report
) -> list[R]:
    """Run jobs, each on a device that its thread holds; return the results in order.

    There is a thread for each device. Where a device fails its job goes back, and is done by
    another one, or by the one that the thread gets next. `report` is told of each failure.
    Raises DeviceFailed where a job is left that no device did. At any other error, and at
    Ctrl-C, no further job begins.
    """
    left = deque(range(len(jobs)))
    results: dict[int, R] = {}
    failures: list[DeviceFailed] = []
    stopped = threading.Event()

    def work() -> None:
        failed = 0
        while left and failed < _PATIENCE and not stopped.is_set():
            try:
                number = left.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                results[number] = run(jobs[number])
                failed = 0
            except DeviceFailed as error:
                left.append(number)
                failures.append(error)
                failed += 1
                report(f"{error} What it was doing is done once more, on another if there is.")
            except BaseException:
                stopped.set()
                raise

    with ThreadPoolExecutor(max(1, min(devices, len(jobs)))) as pool:
        try:
            working = {pool.submit(work) for _ in range(devices)}
            while working:
                # A Ctrl-C that comes just before Python waits is seen when it has waited.
                ended, working = wait(working, timeout=1.0, return_when=FIRST_COMPLETED)
                for thread in ended:
                    thread.result()
        except BaseException:
            stopped.set()  # leaving the pool waits for what its threads do
            raise
    if left:
        work()  # the last device failed when the others had nothing left to do
    if left:
        raise failures[-1]
    return [results[number] for number in range(len(jobs))]
