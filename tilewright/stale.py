"""Stale: what lies in caches for the sake of work that was never taken up again."""

import contextlib
import time
from pathlib import Path

STALE_S = 30 * 24 * 3600  # since it was last written


def remove_stale(folder: Path, pattern: str) -> None:
    """Remove the files of a folder that match and were not written for 30 days.

    What cannot be removed stays.
    """
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_S:
                path.unlink()
