"""Places in one memory for buffers that live for a while each."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def place(
    lives: Mapping[Key, tuple[int, int]], sizes: Mapping[Key, int]
) -> tuple[dict[Key, int], int]:
    """Give every buffer its place in one arena; return byte offsets, and the arena's size.

    `lives` says when each is first and last used. Those whose lives do not overlap share bytes.
    Largest first, each at the lowest place that is free for its whole life.
    """
    placed: list[tuple[Key, int, int]] = []
    offsets: dict[Key, int] = {}
    size = 0
    for buffer in sorted(lives, key=lambda b: (-sizes[b], lives[b])):
        first, last = lives[buffer]
        taken = sorted(
            (start, end)
            for other, start, end in placed
            if lives[other][0] <= last and first <= lives[other][1]
        )
        at = 0
        for start, end in taken:
            if at + sizes[buffer] <= start:
                break
            at = max(at, end)
        offsets[buffer] = at
        placed.append((buffer, at, at + sizes[buffer]))
        size = max(size, at + sizes[buffer])
    return offsets, size
