"""Memory that was freed, and that the C library still holds."""

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# Python looks at every object there is to find some that refer to each other. The imported
# libraries made half a million: it takes some tenths of a second, a few times a compile.
_WORTH_A_SEARCH = 1 << 25
# glibc's mallopt, by the numbers of malloc.h. What it starts with, but for the threshold, which
# glibc moves by itself as long as nobody sets it: the highest value that it would move it to.
_TRIM_THRESHOLD, _TRIM_BYTES = -1, 1 << 26
_MMAP_MAX, _MMAPS = -4, 1 << 16


def return_freed_memory(weight_bytes: int) -> None:
    """Give freed memory back to the system, where the C library can: glibc's malloc_trim.

    glibc keeps what was freed in pieces of up to 32 MiB, and most layers' weights are smaller.
    Without this, one stage's memory counts on top of the next one's. Graphs go first, if their
    `weight_bytes` are 32 MiB or more: their nodes and tensors refer to each other, so no count
    of references frees them.
    """
    if weight_bytes >= _WORTH_A_SEARCH:
        gc.collect()
    if trim := _of_libc("malloc_trim"):
        trim(0)


@contextlib.contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the C library keep what is freed meanwhile, for what asks for as much again soon.

    Else glibc gives each large array back to the system at once, which then clears every page
    of the next one: a third of the time of training through convolutions.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, _MMAPS)
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        return_freed_memory(0)


def _of_libc(name: str) -> "ctypes._NamedFuncPointer | None":
    """Return a function of the C library, or None where it has no such."""
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None), name)
    except (OSError, TypeError, AttributeError):
        return None
    return found
