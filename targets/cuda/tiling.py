"""Products of matrices as the tile kernel computes them, and how it cuts them into blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.targets.kernels.pen import Expr

# Indices of a buffer, and the condition that they are inside of it, if they may not be.
Place = tuple[Sequence[Expr], Expr | None]


@dataclass(frozen=True)
class Tiling:
    """Outputs and positions of a block of threads and of a thread, and columns of a step."""

    outputs: int
    positions: int
    thread_outputs: int
    thread_positions: int
    depth: int = 16

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
        """Shared memory of a block, for float32."""
        return 4 * self.depth * (self.outputs + self.positions)


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


def computed(product: Product, tiling: Tiling) -> int:
    """Return the entries of Y that all blocks compute, with those beyond its edges."""
    rows = -(-product.outputs // tiling.outputs)
    across = -(-product.positions // tiling.positions)
    return product.batch * rows * tiling.outputs * across * tiling.positions
