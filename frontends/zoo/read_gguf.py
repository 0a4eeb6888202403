"""Read a GGUF file with numpy: its fields, and its tensors dequantised to float32.

Known tensor types are F32, Q8_0 (32 int8 and a scale) and Q4_1 (32 nibbles, a scale and a
minimum). The format is described in ggml's docs/gguf.md.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import UnusableInput

# Value type of a field -> numpy type; 8 is a string and 9 an array.
SCALARS = {
    0: np.uint8,
    1: np.int8,
    2: np.uint16,
    3: np.int16,
    4: np.uint32,
    5: np.int32,
    6: np.float32,
    7: np.bool_,
    10: np.uint64,
    11: np.int64,
    12: np.float64,
}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK = 32
Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("nibbles", "u1", BLOCK // 2)])
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", BLOCK)])


@dataclass(frozen=True)
class TensorPlace:
    """Shape (rows first), type and offset of a tensor in the data part."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Gguf:
    """An open file: fields by name, tensors by name; `body` is the data part on disk."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, TensorPlace]
    body: NDArray[np.uint8]

    def read(self, name: str) -> NDArray[np.float32]:
        """Return one tensor as float32; only this one is held in memory."""
        place = self.tensors[name]
        raw = self.body[place.offset :]
        count = math.prod(place.shape)
        if place.kind == F32:
            return raw[: count * 4].view(np.float32).reshape(place.shape).copy()
        if place.kind == Q8_0:
            blocks = raw[: count // BLOCK * Q8_0_BLOCK.itemsize].view(Q8_0_BLOCK)
            return from_q8_0(blocks).reshape(place.shape)
        if place.kind == Q4_1:
            blocks = raw[: count // BLOCK * Q4_1_BLOCK.itemsize].view(Q4_1_BLOCK)
            return from_q4_1(blocks).reshape(place.shape)
        raise UnusableInput(
            f'zoo: tensor "{name}" of {self.path} has GGUF type {place.kind}; known are '
            f"{F32} (F32), {Q4_1} (Q4_1) and {Q8_0} (Q8_0). Convert it to one of these."
        )


def from_q4_1(blocks: NDArray[np.void]) -> NDArray[np.float32]:
    """Return scale * nibble + minimum; low nibbles are the first half of a block."""
    out = np.empty((len(blocks), BLOCK), np.float32)
    out[:, : BLOCK // 2] = blocks["nibbles"] & 15
    out[:, BLOCK // 2 :] = blocks["nibbles"] >> 4
    out *= blocks["scale"].astype(np.float32)[:, None]
    out += blocks["minimum"].astype(np.float32)[:, None]
    return out


def from_q8_0(blocks: NDArray[np.void]) -> NDArray[np.float32]:
    """Return scale * value."""
    return blocks["values"] * blocks["scale"].astype(np.float32)[:, None]


def open_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file (version 2 or 3) and leave its tensors on disk."""
    raw = np.memmap(path, np.uint8, "r")
    cursor = Cursor(raw)
    magic, version = raw[:4].tobytes(), int(raw[4:8].view(np.uint32)[0])
    if magic != b"GGUF" or version not in (2, 3):
        raise UnusableInput(
            f"zoo: {path} should be a GGUF file of version 2 or 3, but it begins with "
            f"{magic!r} and version {version}. Remove it and run again."
        )
    cursor.at = 8
    tensor_count, field_count = cursor.scalar(10), cursor.scalar(10)
    fields = {}
    for _ in range(field_count):
        name = cursor.text()
        fields[name] = cursor.value(cursor.scalar(4))
    tensors = {}
    for _ in range(tensor_count):
        name = cursor.text()
        shape = tuple(cursor.scalar(10) for _ in range(cursor.scalar(4)))[::-1]
        kind = cursor.scalar(4)
        tensors[name] = TensorPlace(shape, kind, cursor.scalar(10))
    alignment = fields.get("general.alignment", 32)
    return Gguf(path, fields, tensors, raw[-(-cursor.at // alignment) * alignment :])


class Cursor:
    """A place in the header that moves on with each value read."""

    def __init__(self, raw: NDArray[np.uint8]) -> None:
        self.raw = raw
        self.at = 0

    def take(self, count: int) -> NDArray[np.uint8]:
        """Return the next `count` bytes."""
        self.at += count
        return self.raw[self.at - count : self.at]

    def scalar(self, kind: int) -> Any:
        """Return the next number."""
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize).tobytes(), dtype)[0].item()

    def text(self) -> str:
        """Return the next string: 64-bit length, then UTF-8."""
        return self.take(self.scalar(10)).tobytes().decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """Return the next value: number, string, or list of either."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.scalar(kind)
        inner, count = self.scalar(4), self.scalar(10)
        if inner in SCALARS:
            dtype = np.dtype(SCALARS[inner])
            return np.frombuffer(self.take(count * dtype.itemsize).tobytes(), dtype).tolist()
        return [self.value(inner) for _ in range(count)]
