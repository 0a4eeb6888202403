"""Window: a tensor as a strided view onto a buffer, so that most shape ops cost nothing.

Transpose, Slice, Split, Squeeze, Expand and most Reshapes only change the window. Kernels are
generated from strides, so data moves only where lanes could not be loaded otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

LINE = 16  # float32 elements of a cache line


@dataclass(frozen=True)
class Buffer:
    """A piece of memory: `elements` of `dtype`, in the arena or among the weights."""

    name: str
    dtype: str
    elements: int
    constant: bool = False


@dataclass(frozen=True)
class Window:
    """`shape` elements of a buffer, `strides` apart, from `offset` on; all in elements."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> str:
        """Element type."""
        return self.buffer.dtype

    @property
    def size(self) -> int:
        """Number of elements that the window shows."""
        return math.prod(self.shape)

    @property
    def order(self) -> tuple[int, ...]:
        """Axes from the largest stride to the smallest: how the data lie in memory.

        Axes of extent 1 say nothing and keep their logical place.
        """
        axes = list(range(len(self.shape)))
        real = [a for a in axes if self.shape[a] > 1]
        ranked = iter(sorted(real, key=lambda a: (-abs(self.strides[a]), a)))
        return tuple(next(ranked) if self.shape[a] > 1 else a for a in axes)

    @property
    def run(self) -> int:
        """How many of the fastest axes lie without gaps, where a gap follows them; else 0."""
        step = 1
        for count, axis in enumerate(reversed(self.order)):
            if self.shape[axis] > 1 and abs(self.strides[axis]) != step:
                return count
            step *= self.shape[axis]
        return 0

    def transposed(self, perm: Sequence[int]) -> "Window":
        """Permute the axes."""
        return replace(
            self,
            shape=tuple(self.shape[p] for p in perm),
            strides=tuple(self.strides[p] for p in perm),
        )

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> "Window":
        """Take `count` entries of an axis, `step` apart, from `start` on."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = count, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def broadcast(self, shape: Sequence[int]) -> "Window":
        """Repeat by stride 0 up to `shape`, as ONNX broadcasting does."""
        lead = len(shape) - len(self.shape)
        own = (1,) * lead + self.shape
        strides = (0,) * lead + self.strides
        kept = tuple(s if n == m else 0 for s, n, m in zip(strides, own, shape, strict=True))
        return replace(self, shape=tuple(shape), strides=kept)

    def reshaped(self, shape: Sequence[int]) -> "Window | None":
        """Show the same elements in another shape, or None where they would have to move."""
        strides = reshape_strides(self.shape, self.strides, tuple(shape))
        return None if strides is None else replace(self, shape=tuple(shape), strides=strides)


def compact(
    buffer: Buffer, shape: Sequence[int], order: Sequence[int] | None = None, run: int = 0
) -> Window:
    """Fill a buffer; `order` lists the axes from the slowest to the fastest.

    There are no gaps but behind the fastest `run` axes, where the next entry starts on a cache
    line: vectors that straddle two lines take a layer's kernel half as fast again.
    """
    return Window(buffer, tuple(shape), strides_of(shape, order, run)[0])


def strides_of(
    shape: Sequence[int], order: Sequence[int] | None = None, run: int = 0
) -> tuple[tuple[int, ...], int]:
    """Return the strides that `compact` gives, and how many elements the buffer must hold."""
    strides = [0] * len(shape)
    step = 1
    axes = tuple(order) if order is not None else tuple(range(len(shape)))
    for count, axis in enumerate(reversed(axes)):
        if run and count == run and step > LINE:
            step = -(-step // LINE) * LINE
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides), step


def collapse(
    shape: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge neighbouring axes that every operand walks evenly; drop axes of extent 1.

    `strides` holds one row an operand. At least one axis is left.
    """
    dims: list[int] = []
    rows: list[list[int]] = [[] for _ in strides]
    for axis, extent in enumerate(shape):
        if extent == 1:
            continue
        steps = [row[axis] for row in strides]
        mergeable = dims and all(
            row[-1] == step * extent for row, step in zip(rows, steps, strict=True)
        )
        if mergeable:
            dims[-1] *= extent
            for row, step in zip(rows, steps, strict=True):
                row[-1] = step
        else:
            dims.append(extent)
            for row, step in zip(rows, steps, strict=True):
                row.append(step)
    if not dims:
        return (1,), [(1,) for _ in strides]
    return tuple(dims), [tuple(row) for row in rows]


def reshape_strides(
    shape: tuple[int, ...], strides: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return the strides that show the elements of `shape` as `target`, or None."""
    if math.prod(shape) == 0:
        return (0,) * len(target)
    (dims, (steps,)) = collapse(shape, [strides])
    left = list(zip(dims, steps, strict=True))
    result: list[int] = []
    extent, step = left.pop(0)
    for want in target:
        if want == 1:
            result.append(0)
            continue
        if extent == 1:
            if not left:
                return None
            extent, step = left.pop(0)
        if extent % want:
            return None
        extent //= want
        result.append(step * extent)
    return tuple(result)
