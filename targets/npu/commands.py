"""Command streams of Ethos-U: what they tell the device about weights."""

import struct
from collections.abc import Iterator

_MAGIC = b"COP1"
# Actions of the driver, in the low byte of a word; words that follow some of them.
_CONFIGURE, _STREAM = 1, 2
_CONFIGURE_WORDS = 2
_CONVOLVE, _SET_WEIGHT_FORMAT = 0x002, 0x12E  # the latter of Ethos-U85 alone
_SPARSE = 1 << 4
_HAS_PAYLOAD = 0x4000
_CODE = 0x3FF


def sparse_convolutions(stream: bytes) -> int:
    """Count the convolutions that a command stream runs in the mode for 2:4 weights.

    A layer may be several, by stripes. 0 for a device that has no such mode, or a stream of
    another form.
    """
    sparse, count = False, 0
    for code, value in _commands(stream):
        if code == _SET_WEIGHT_FORMAT:
            sparse = bool(value & _SPARSE)
        count += sparse and code == _CONVOLVE
    return count


def _commands(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield code and parameter of the commands that have no payload; a stream may end early."""
    if not stream.startswith(_MAGIC):
        return
    words = iter(struct.unpack(f"<{len(stream) // 4}I", stream[: len(stream) // 4 * 4])[1:])
    for word in words:
        if word & 0xFF == _STREAM:
            break
        if word & 0xFF == _CONFIGURE:
            for _ in range(_CONFIGURE_WORDS):
                next(words, None)
    for word in words:
        if word & _HAS_PAYLOAD:
            next(words, None)
        else:
            yield word & _CODE, word >> 16
