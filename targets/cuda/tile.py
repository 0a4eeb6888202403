"""The tile kernel: products of matrices, dense or tile-sparse, with thread bindings.

Y[b, n, m] = sum over k of W[n, k] X[b, k, m]: `n` counts outputs, `m` positions. A block of
threads computes `outputs` x `positions` of it. Step by step it brings `depth` columns of W and
the rows of X that they meet to shared memory; each thread keeps its part of Y in registers.
Where W is sparse, a block's columns are those that its tile kept: the same code, with the
number of the row of X read from a list.

What is done to Y behind the product is not written here: TVM fuses it into the block "store".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.kernels.pen import Expr

PRODUCT, STORE = "tile_product", "tile_store"
CYCLES = "tilewright.cycles"  # an annotation of the block PRODUCT: what is estimated of it
# TVM's number for "elementwise operators behind it may join".
_TAKES_ELEMENTWISE = 4

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


def tile_kernel(product: Product, tiling: Tiling, cycles: float) -> Expr:
    """Return the PrimFunc: X, W, then of a sparse W columns and starts of tiles, and Y.

    What it is estimated to take is told by an annotation, which outlives fusion.
    """
    return _Writer(product, tiling).write(cycles)


class _Writer:
    def __init__(self, product: Product, tiling: Tiling) -> None:
        self.of, self.by = product, tiling
        self.rows = -(-product.outputs // tiling.outputs)
        self.across = -(-product.positions // tiling.positions)
        self.beside = tiling.outputs // tiling.thread_outputs
        self.along = tiling.positions // tiling.thread_positions

    def write(self, cycles: float) -> Expr:
        of, by = self.of, self.by
        with IRBuilder() as builder, T.prim_func(s_tir=True, private=True):
            T.func_attr({"op_pattern": _TAKES_ELEMENTWISE, "tirx.noalias": True})
            self.x = T.arg("X", _buffer(of.x.shape))
            self.w = T.arg("W", _buffer(self._weights_shape()))
            if of.kept is not None:
                self.list = T.arg("columns", _buffer((of.kept,), "int32"))
                self.starts = T.arg("starts", _buffer((self.rows + 1,), "int32"))
            self.y = T.arg("Y", _buffer(of.y.shape))
            with T.sblock("root"):
                shape = (of.batch, self.rows * by.outputs, self.across * by.positions)
                self.sums = T.sblock_alloc_buffer(shape, "float32", scope="local")
                self._blocks(cycles)
        return builder.get()

    def _blocks(self, cycles: float) -> None:
        with (
            T.thread_binding(self.of.batch, thread="blockIdx.z") as b,
            T.thread_binding(self.rows, thread="blockIdx.y") as row,
            T.thread_binding(self.across, thread="blockIdx.x") as at,
            T.thread_binding(self.by.threads, thread="threadIdx.x") as thread,
        ):
            self._product(b, row, at, thread, cycles)
            self._store(b, row, at, thread)

    def _weights_shape(self) -> tuple[int, ...]:
        if self.of.w is not None:
            return self.of.w.shape
        steps = self.rows * self.of.columns if self.of.kept is None else self.of.kept
        return (steps, self.by.outputs)

    def _first(self, row: Expr, at: Expr, thread: Expr) -> tuple[Expr, Expr]:
        """Return the first output and position of a thread."""
        beside, along = self._within(thread)
        return row * self.by.outputs + beside, at * self.by.positions + along

    def _within(self, thread: Expr) -> tuple[Expr, Expr]:
        """Return the first output and position of a thread, counted within its block."""
        if self.of.outputs_last:
            n, m = thread % self.beside, thread // self.beside
        else:
            n, m = thread // self.along, thread % self.along
        return n * self.by.thread_outputs, m * self.by.thread_positions

    def _product(self, b: Expr, row: Expr, at: Expr, thread: Expr, cycles: float) -> None:
        of, by = self.of, self.by
        with T.sblock(PRODUCT):
            T.sblock_attr({CYCLES: cycles})
            b = T.axis.spatial(of.batch, b)
            row = T.axis.spatial(self.rows, row)
            at = T.axis.spatial(self.across, at)
            thread = T.axis.spatial(by.threads, thread)
            n, m = self._first(row, at, thread)
            # Said of the whole, since TVM's proofs of parts fail at uneven edges; what is
            # allocated follows from what is really written.
            T.reads(*(_whole(buffer) for buffer in self._read()))
            T.writes(_whole(self.sums))
            xs = T.sblock_alloc_buffer((by.depth, by.positions), "float32", scope="shared")
            ws = T.sblock_alloc_buffer((by.depth, by.outputs), "float32", scope="shared")
            x = T.sblock_alloc_buffer((by.thread_positions,), "float32", scope="local")
            w = T.sblock_alloc_buffer((by.thread_outputs,), "float32", scope="local")
            with T.unroll(by.thread_outputs) as i, T.unroll(by.thread_positions) as j:
                T.buffer_store(self.sums, T.float32(0), [b, n + i, m + j])
            first, count = self._steps(row)
            with T.serial((count + by.depth - 1) // by.depth) as step:
                here = step * by.depth
                self._bring_x(xs, b, at, thread, first, here, count)
                self._bring_w(ws, b, row, thread, first, here, count)
                with T.serial(by.depth) as k:
                    beside, along = self._within(thread)
                    with T.unroll(by.thread_positions) as j:
                        T.buffer_store(x, xs[k, along + j], [j])
                    with T.unroll(by.thread_outputs) as i:
                        T.buffer_store(w, ws[k, beside + i], [i])
                    with T.unroll(by.thread_outputs) as i, T.unroll(by.thread_positions) as j:
                        place = (b, n + i, m + j)
                        T.buffer_store(self.sums, self.sums[place] + w[i] * x[j], list(place))

    def _read(self) -> list[Expr]:
        lists = [] if self.of.kept is None else [self.list, self.starts]
        return [self.x, self.w, *lists]

    def _steps(self, row: Expr) -> tuple[Expr, Expr]:
        """Return where a block's columns start among all packed ones, and their number."""
        if self.of.kept is None:
            return row * self.of.columns, tirx.const(self.of.columns, "int32")
        first = T.bind(self.starts[row])
        return first, T.bind(self.starts[row + 1] - first)

    def _bring_x(
        self, xs: Expr, b: Expr, at: Expr, thread: Expr, first: Expr, here: Expr, count: Expr
    ) -> None:
        of, by = self.of, self.by
        with self._shared_out(thread, by.depth * by.positions) as entry:
            if of.columns_last:
                k, m = entry % by.depth, entry // by.depth
            else:
                k, m = entry // by.positions, entry % by.positions
            position = at * by.positions + m
            column = here + k
            known = tirx.all(column < count, position < of.positions)
            if of.kept is not None:
                # Behind the last column some other is read, and not used.
                column = self.list[tirx.min(first + column, of.kept - 1)]
            indices, condition = of.x.place(b, column, position)
            guard = known if condition is None else tirx.all(known, condition)
            value = tirx.if_then_else(guard, self.x[tuple(indices)], T.float32(0))
            T.buffer_store(xs, value, [k, m])

    def _bring_w(
        self, ws: Expr, b: Expr, row: Expr, thread: Expr, first: Expr, here: Expr, count: Expr
    ) -> None:
        of, by = self.of, self.by
        with self._shared_out(thread, by.depth * by.outputs) as entry:
            k, n = entry // by.outputs, entry % by.outputs
            guard = here + k < count
            if of.w is None:
                value = self.w[first + here + k, n]
            else:
                output = row * by.outputs + n
                indices, _ = of.w.place(b, output, here + k)
                guard = tirx.all(guard, output < of.outputs)
                value = self.w[tuple(indices)]
            T.buffer_store(ws, tirx.if_then_else(guard, value, T.float32(0)), [k, n])

    @contextmanager
    def _shared_out(self, thread: Expr, entries: int) -> Iterator[Expr]:
        """Loop over the entries that a thread brings; neighbours bring neighbouring ones."""
        threads = self.by.threads
        with T.unroll(-(-entries // threads)) as turn:
            entry = turn * threads + thread
            if entries % threads == 0:
                yield entry
                return
            with T.If(entry < entries), T.Then():
                yield entry

    def _store(self, b: Expr, row: Expr, at: Expr, thread: Expr) -> None:
        of, by = self.of, self.by
        first_n, first_m = self._first(row, at, thread)
        with (
            T.unroll(by.thread_outputs) as i,
            T.unroll(by.thread_positions) as j,
            T.sblock(STORE),
        ):
            n, m = first_n + i, first_m + j
            # TVM's proofs fail at conditions that always hold.
            if edges := [
                *([n < of.outputs] if of.outputs % by.outputs else []),
                *([m < of.positions] if of.positions % by.positions else []),
            ]:
                T.where(tirx.all(*edges))
            b = T.axis.spatial(of.batch, b)
            n = T.axis.spatial(of.outputs, n)
            m = T.axis.spatial(of.positions, m)
            indices, _ = of.y.place(b, n, m)
            T.reads(self.sums[b, n, m])
            T.writes(self.y[tuple(indices)])
            T.buffer_store(self.y, self.sums[b, n, m], list(indices))


def _whole(buffer: Expr) -> Expr:
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)]


def _buffer(shape: Sequence[int], dtype: str = "float32") -> Expr:
    """Return a buffer argument as Relax has them, so that TVM fuses this kernel with others."""
    return T.buffer([tirx.const(extent, "int64") for extent in shape], dtype, layout=None)
