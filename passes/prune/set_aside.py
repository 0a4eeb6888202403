"""What is not at work, weights above all, in a file that has no name."""

import mmap
import pickle
import tempfile
from collections.abc import Hashable, Iterable
from typing import Any

from tilewright.errors import UnusableInput


class Aside:
    """Arrays, or what is made of some, by key; they take memory only while in use."""

    def __init__(self, found: Iterable[tuple[Hashable, Any]]) -> None:
        """Write them one by one. Raises UnusableInput where the file has no room."""
        self._places: dict[Hashable, slice] = {}
        with tempfile.TemporaryFile(prefix="tilewright-") as file:
            for key, value in found:
                begin = file.tell()
                try:
                    pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
                    file.flush()
                except OSError as error:
                    raise UnusableInput(
                        f'The temporary folder "{tempfile.gettempdir()}" has no room for '
                        f"weights to be compared: {error.strerror}. Set TMPDIR to another "
                        "folder."
                    ) from error
                self._places[key] = slice(begin, file.tell())
            self._map = mmap.mmap(file.fileno(), 0) if self._places else None

    def read(self, key: Hashable) -> Any:
        """Return what was set aside under a key."""
        place = self._places[key]
        assert self._map is not None
        found = pickle.loads(self._map[place])
        self._map.madvise(mmap.MADV_DONTNEED)
        return found
