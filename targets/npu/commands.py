"""Command streams of Ethos-U: what they tell the device about weights."""

import struct
from collections.abc import Iterator

_MAGIC = b"COP1"
# Actions of the driver, in the low byte of a word; words that follow some of them.
_CONFIGURE, _STREAM = 1, 2
_CONFIGURE_WORDS = 2
_SET_WEIGHT_FORMAT = 0x12E  # Ethos-U85
_SPARSE = 1 << 4
_HAS_PAYLOAD = 0x4000
_CODE = 0x3FF


def sparse_layers(stream: bytes) -> int:
    """Count how often a command stream switches reading of 2:4 weights on.

    0 for a device that has no such mode, or a stream of another form.
    """
    parameters = (value for code, value in _commands(stream) if code == _SET_WEIGHT_FORMAT)
    return sum(bool(value & _SPARSE) for value in parameters)


def _commands(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield code and parameter of the commands that have no payload."""
    if not stream.startswith(_MAGIC):
        return
    words = iter(struct.unpack(f"<{len(stream) // 4}I", stream[: len(stream) // 4 * 4])[1:])
    for word in words:
        if word & 0xFF == _STREAM:
            break
        if word & 0xFF == _CONFIGURE:
            for _ in range(_CONFIGURE_WORDS):
                next(words)
    for word in words:
        if word & _HAS_PAYLOAD:
            next(words)
        else:
            yield word & _CODE, word >> 16
