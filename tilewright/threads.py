"""Threads: independent work spread over the cores, with the BLAS inside each kept to one."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# How OpenBLAS spells its setter and getter in its own builds and in numpy's and scipy's.
_SPELLINGS = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


def spread_over_cores(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return [work(item) for item in items], computed on all cores, in the order of `items`.

    Meant for calls of numpy, scipy and onnxruntime, which let other threads run. Each call's
    BLAS runs on one thread, so a result does not depend on how many cores there are.
    """
    with one_blas_thread(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(work, items))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the OpenBLAS libraries of this process to one thread meanwhile.

    Many small products are far slower when each wakes a pool, above all on a busy machine.
    Another BLAS is left as it is: slower, never wrong.
    """
    before = [(setter, getter()) for setter, getter in _openblas()]
    for setter, _ in before:
        setter(1)
    try:
        yield
    finally:
        for setter, count in before:
            setter(count)


def _openblas() -> Iterator[tuple[Callable[[int], None], Callable[[], int]]]:
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for spelling in _SPELLINGS:
            setter = getattr(library, spelling.format("set"), None)
            getter = getattr(library, spelling.format("get"), None)
            if setter is not None and getter is not None:
                setter.restype = None
                yield setter, getter
                break
