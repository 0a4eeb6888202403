"""Memory that was freed, and that the C library still holds."""

import ctypes
import gc


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can: glibc's malloc_trim.

    glibc keeps what was freed in pieces of up to 32 MiB, and most layers' weights are smaller.
    Without this, one stage's memory counts on top of the next one's. Graphs go first: their
    nodes and tensors refer to each other, so no count of references frees them.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return
    trim(0)
