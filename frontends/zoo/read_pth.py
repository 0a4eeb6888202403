"""Read a PyTorch checkpoint of the format before zip files, without PyTorch.

Five pickles (magic number, version, system, tensors, storage keys), then the storages in the
order of their keys, each as a 64-bit element count and raw elements. A pickle may call
anything; this reader only knows how to rebuild tensors and refuses the rest.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import UnusableInput

MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A run of elements in the file that tensors are cut from."""

    key: str
    dtype: type[np.generic]


class StoragePlace(NamedTuple):
    """Where a tensor lies in its storage; the rest is what autograd would want."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: object


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): StoragePlace,
    ("torch", "FloatStorage"): np.float32,
    ("torch", "LongStorage"): np.int64,
}


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors as `StoragePlace` and refuses every other call."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the pickle."""
        if (module, name) not in ALLOWED:
            raise UnusableInput(
                f'zoo: a checkpoint wants to call "{module}.{name}", and only tensors are '
                f"read here. Do not use this file unless you trust it; then save its "
                f"state_dict and convert that."
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a tensor of the pickle refers to."""
        kind, dtype, key, _device, _elements, view = pid
        if kind != "storage" or view is not None:
            raise UnusableInput(
                f'zoo: a checkpoint refers to a "{kind}" that is not a plain storage. '
                f"Save its state_dict with contiguous tensors and use that."
            )
        return Storage(key, dtype)


def read_pth(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return tensor name -> array of a state_dict.

    Raises UnusableInput when the file is of another format or calls anything but tensors.
    """
    with path.open("rb") as file:
        if not is_legacy(file):
            raise UnusableInput(
                f"zoo: {path} should be a PyTorch checkpoint of the format before 1.6, but "
                f"its magic number is missing. Load it with torch and export it to ONNX."
            )
        for _ in ("version", "system"):
            TensorUnpickler(file).load()
        places: dict[str, StoragePlace] = TensorUnpickler(file).load()
        keys: list[str] = TensorUnpickler(file).load()
        dtypes = {place.storage.key: place.storage.dtype for place in places.values()}
        storages = {key: read_storage(file, dtypes[key]) for key in keys}
    return {name: cut(storages[p.storage.key], p) for name, p in places.items()}


def is_legacy(file: IO[bytes]) -> bool:
    """Tell whether a file begins with the pickled magic number, and read past it."""
    try:
        return bool(TensorUnpickler(file).load() == MAGIC)
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError):
        return False


def read_storage(file: IO[bytes], dtype: type[np.generic]) -> NDArray[np.generic]:
    """Read one element count and that many elements."""
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)


def cut(storage: NDArray[np.generic], place: StoragePlace) -> NDArray[np.generic]:
    """Return one tensor of a storage; element (i, j, ..) is at offset + i stride_0 + ..."""
    # An index array, not a strided view: numpy checks that every index is inside.
    at = np.full(place.shape, place.offset, np.int64)
    for axis, (length, stride) in enumerate(zip(place.shape, place.stride, strict=True)):
        steps = np.arange(length) * stride
        at += steps.reshape([-1 if i == axis else 1 for i in range(len(place.shape))])
    return storage[at]
