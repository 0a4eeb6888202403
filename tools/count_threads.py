"""Settle how many threads an inference gets."""

from tilewright import oracle
from tilewright.protocol import Report, silent


def count_threads(asked: int | None, report: Report = silent) -> int | None:
    """Return the threads that were asked for, at most one a core; say so where it is fewer."""
    cores = oracle.cores()
    if asked is None or asked <= cores:
        return asked
    report(f"{asked} threads asked for, {cores} cores here: taking {cores}")
    return cores
