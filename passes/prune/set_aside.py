"""Weights that are not at work, in a file that has no name."""

import mmap
import tempfile
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.passes.prune.probe import Constants


class _Stored(NamedTuple):
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Aside:
    """Constants by key, which take memory only while they are written and read."""

    def __init__(self, found: Iterable[tuple[Hashable, Constants]]) -> None:
        """Write them one by one. Raises UnusableInput where the file has no room."""
        self._stored: dict[Hashable, dict[str, _Stored]] = {}
        with tempfile.TemporaryFile(prefix="tilewright-") as file:
            for key, constants in found:
                self._stored[key] = {}
                for name, values in constants.items():
                    self._stored[key][name] = _Stored(file.tell(), values.dtype, values.shape)
                    try:
                        file.write(np.ascontiguousarray(values).tobytes())
                        file.flush()
                    except OSError as error:
                        raise UnusableInput(
                            f'The temporary folder "{tempfile.gettempdir()}" has no room for '
                            f"weights to be compared: {error.strerror}. Set TMPDIR to another "
                            "folder."
                        ) from error
            self._map = mmap.mmap(file.fileno(), 0) if file.tell() else None

    def read(self, key: Hashable) -> dict[str, np.ndarray]:
        """Return what was set aside under a key."""
        found = {}
        for name, (begin, dtype, shape) in self._stored[key].items():
            end = begin + int(np.prod(shape)) * dtype.itemsize
            raw = b"" if self._map is None else self._map[begin:end]
            found[name] = np.frombuffer(raw, dtype).reshape(shape)
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
        return found
