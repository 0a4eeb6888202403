"""Read a safetensors file with numpy: 8 bytes of header length, a JSON header, raw arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import UnusableInput

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """Return tensor name -> read-only array; the arrays are views of the file on disk.

    Raises UnusableInput when the header is damaged or a tensor has a type that numpy lacks.
    """
    raw = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    try:
        header = json.loads(raw[8 : 8 + length].tobytes())
    except ValueError as error:
        raise UnusableInput(
            f"zoo: {path} should be a safetensors file, but its header of {length} bytes is "
            f"not JSON ({error}). Remove it and run again."
        ) from error
    header.pop("__metadata__", None)
    return {name: tensor(path, raw[8 + length :], name, at) for name, at in header.items()}


def tensor(
    path: Path, body: NDArray[np.uint8], name: str, at: dict[str, Any]
) -> NDArray[np.generic]:
    """Return one tensor as a view of `body`, the file after its header."""
    if at["dtype"] not in DTYPES:
        raise UnusableInput(
            f'zoo: tensor "{name}" of {path} has type {at["dtype"]}; '
            f"known are {', '.join(DTYPES)}. Convert it first."
        )
    begin, end = at["data_offsets"]
    flat: NDArray[np.generic] = body[begin:end].view(DTYPES[at["dtype"]])
    return flat.reshape(at["shape"])
