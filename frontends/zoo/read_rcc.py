"""Read the files inside a compiled Qt resource (.rcc), as far as they are not compressed."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tilewright.errors import UnusableInput

_MAGIC = b"qres"
_HEADER = struct.Struct(">4sIIII")  # magic, version, offsets of tree, data and names
_NODE = struct.Struct(">IHII")  # name, flags; of a folder: how many nodes, the first of them
_DATED = 2  # from this version on a node ends with the time of its last change
_DATE_BYTES = 8
_FOLDER = 2  # a flag; a file without any flag is stored as it is


class Packed(NamedTuple):
    """One file: its path inside the resource, and its bytes."""

    path: str
    data: bytes


def read_rcc(file: Path) -> Iterator[Packed]:
    """Yield the uncompressed files of a resource, depth first.

    Raises UnusableInput where the file is no resource, or ends early.
    """
    whole = file.read_bytes()
    try:
        magic, version, *sections = _HEADER.unpack_from(whole)
        if magic != _MAGIC:
            raise _broken(file)
        tree, data, names = sections
        node_bytes = _NODE.size + (_DATE_BYTES if version >= _DATED else 0)
        waiting = [(0, "")]
        while waiting:
            index, above = waiting.pop()
            name, flags, first, second = _NODE.unpack_from(whole, tree + index * node_bytes)
            path = f"{above}/{_name(file, whole, names + name)}" if index else above
            if flags & _FOLDER:
                waiting += [(second + i, path) for i in reversed(range(first))]
            elif not flags:
                (size,) = struct.unpack_from(">I", whole, data + second)
                start = data + second + 4
                if start + size > len(whole):
                    raise _broken(file)
                yield Packed(path.lstrip("/"), whole[start : start + size])
    except struct.error as error:
        raise _broken(file) from error


def _name(file: Path, whole: bytes, at: int) -> str:
    (letters,) = struct.unpack_from(">H", whole, at)
    start = at + 6  # behind its length and its hash
    if start + 2 * letters > len(whole):
        raise _broken(file)
    return whole[start : start + 2 * letters].decode("utf-16-be")


def _broken(file: Path) -> UnusableInput:
    return UnusableInput(
        f'zoo: "{file}" should be a Qt resource, but it is none or ends early. '
        "Remove the folder it is in and run again."
    )
