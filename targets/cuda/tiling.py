"""Products of matrices as the tile kernel computes them, and how it cuts them into blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tilewright.targets.kernels.pen import Expr

# Indices of a buffer, and the condition that they are inside of it, if they may not be.
Place = tuple[Sequence[Expr], Expr | None]


@dataclass(frozen=True)
class Tiling:
    """Outputs and positions of a block of threads and of a thread, and columns of a step.

    With `tensor_cores` warps multiply for all of a block's threads, which then store the sums.
    """

    outputs: int
    positions: int
    thread_outputs: int
    thread_positions: int
    depth: int = 16
    tensor_cores: bool = False

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return (self.outputs // self.thread_outputs) * (self.positions // self.thread_positions)

    @property
    def coming(self) -> int:
        """Registers of a thread that hold what is on its way to shared memory."""
        return sum(-(-self.depth * n // self.threads) for n in (self.outputs, self.positions))

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: columns of W, rows of X, and the sums of tensor cores."""
        if not self.tensor_cores:
            return 4 * self.depth * (self.outputs + self.positions)
        rows = self.depth * (self.outputs + self.positions + 16)
        return 4 * (rows + self.outputs * self.positions)


@dataclass(frozen=True)
class Source:
    """Where a matrix lies: the shape of its buffer, and the place of an entry."""

    shape: tuple[int, ...]
    place: Callable[[Expr, Expr, Expr], Place]


@dataclass(frozen=True)
class Product:
    """A product to be written as a kernel.

    `x` and `y` say where X[b, k, m] and Y[b, n, m] lie. W lies where `w` says W[b, n, k] does,
    or, without `w`, as packed tiles: (steps, outputs of a block), one tile behind the other.
    `kept` counts the columns of all sparse tiles; None is a dense W. Threads that are
    neighbours take neighbouring outputs where `outputs_last`, else neighbouring positions:
    what Y's last axis counts. `columns_last` says the same of X and its columns.
    """

    batch: int
    outputs: int
    columns: int
    positions: int
    x: Source
    y: Source
    w: Source | None = None
    kept: int | None = None
    outputs_last: bool = False
    columns_last: bool = False


class Matrix(NamedTuple):
    """Columns of W, or rows of X, that a block works on: in shared memory, and on the way.

    A row in shared memory begins `stride` behind the one before. It is flat, as TVM would
    otherwise close the gaps between rows.
    """

    shared: Expr
    coming: Expr
    stride: int

    def at(self, row: Expr, entry: Expr) -> Expr:
        """Return an entry in shared memory."""
        return self.shared[row * self.stride + entry]


def computed(product: Product, tiling: Tiling) -> int:
    """Return the entries of Y that all blocks compute, with those beyond its edges."""
    rows = -(-product.outputs // tiling.outputs)
    across = -(-product.positions // tiling.positions)
    return product.batch * rows * tiling.outputs * across * tiling.positions
