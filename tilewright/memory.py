"""Memory that was freed, and that the C library still holds."""

import ctypes
import gc

# Python looks at every object there is to find some that refer to each other. The imported
# libraries made half a million: it takes some tenths of a second, a few times a compile.
_WORTH_A_SEARCH = 1 << 25


def return_freed_memory(weight_bytes: int) -> None:
    """Give freed memory back to the system, where the C library can: glibc's malloc_trim.

    glibc keeps what was freed in pieces of up to 32 MiB, and most layers' weights are smaller.
    Without this, one stage's memory counts on top of the next one's. Graphs go first, if their
    `weight_bytes` are 32 MiB or more: their nodes and tensors refer to each other, so no count
    of references frees them.
    """
    if weight_bytes >= _WORTH_A_SEARCH:
        gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return
    trim(0)
