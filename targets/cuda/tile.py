"""The tile kernel: products of matrices, dense or tile-sparse, with thread bindings.

Y[b, n, m] = sum over k of W[n, k] X[b, k, m]: `n` counts outputs, `m` positions. A block of
threads computes `outputs` x `positions` of it. Step by step it brings `depth` columns of W and
the rows of X that they meet to shared memory; each thread keeps its part of Y in registers.
While a step is multiplied, the next is on its way from memory to registers.
Where W is sparse, a block's columns are those that its tile kept: the same code, with the
number of the row of X read from a list.

What is done to Y behind the product is not written here: TVM fuses it into the block "store".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.cuda.fragments import Fragments
from tilewright.targets.cuda.lanes import Lanes
from tilewright.targets.cuda.tiling import Matrix, Product, Tiling
from tilewright.targets.kernels.pen import Expr

PRODUCT, STORE = "tile_product", "tile_store"
CYCLES = "tilewright.cycles"  # an annotation of the block PRODUCT: what is estimated of it
# TVM's number for "elementwise operators behind it may join".
_TAKES_ELEMENTWISE = 4


def tile_kernel(product: Product, tiling: Tiling, cycles: float) -> Expr:
    """Return the PrimFunc: X, W, then of a sparse W columns and starts of tiles, and Y.

    What it is estimated to take is told by an annotation, which outlives fusion.
    """
    return _Writer(product, tiling).write(cycles)


class _Step(NamedTuple):
    """Which block and thread it is, where its columns start among all, and their number."""

    b: Expr
    row: Expr
    at: Expr
    thread: Expr
    first: Expr
    count: Expr


class _Writer:
    def __init__(self, product: Product, tiling: Tiling) -> None:
        self.of, self.by = product, tiling
        self.rows = -(-product.outputs // tiling.outputs)
        self.across = -(-product.positions // tiling.positions)
        self.beside = tiling.outputs // tiling.thread_outputs
        self.along = tiling.positions // tiling.thread_positions
        self.kind: type[Fragments | Lanes] = Fragments if tiling.tensor_cores else Lanes

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
                self.sums = T.sblock_alloc_buffer(shape, "float32", scope=self.kind.scope)
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
            # Said of the whole, since TVM's proofs of parts fail at uneven edges; what is
            # allocated follows from what is really written.
            lists = [] if of.kept is None else [self.list, self.starts]
            T.reads(*(_whole(buffer) for buffer in (self.x, self.w, *lists)))
            T.writes(_whole(self.sums))
            x, w = self._matrix(by.positions), self._matrix(by.outputs)
            block = (b, row * by.outputs, at * by.positions)
            arithmetic = self.kind(by, self.sums, block)
            arithmetic.start(*self._within(thread), thread)
            first, count = self._steps(row)
            here = _Step(b, row, at, thread, first, count)
            self._fetch(x, w, here, tirx.const(0, "int32"))
            with T.serial((count + by.depth - 1) // by.depth) as step:
                self._share(x, w, thread)
                self._fetch(x, w, here, (step + 1) * by.depth)
                arithmetic.multiply(w, x)
            arithmetic.finish()

    def _matrix(self, across: int) -> Matrix:
        """Return memory for `depth` columns of W, or rows of X, that a block works on."""
        depth, stride = self.by.depth, across + self.kind.gap
        brought = -(-depth * across // self.by.threads)
        return Matrix(
            T.sblock_alloc_buffer((depth * stride,), "float32", scope="shared"),
            T.sblock_alloc_buffer((brought,), "float32", scope="local"),
            stride,
        )

    def _steps(self, row: Expr) -> tuple[Expr, Expr]:
        """Return where a block's columns start among all packed ones, and their number."""
        if self.of.kept is None:
            return row * self.of.columns, tirx.const(self.of.columns, "int32")
        first = T.bind(self.starts[row])
        return first, T.bind(self.starts[row + 1] - first)

    def _fetch(self, x: Matrix, w: Matrix, here: "_Step", step: Expr) -> None:
        """Bring the columns from `step` on to registers: zeros behind the last."""
        of, by = self.of, self.by
        with self._shared_out(here.thread, by.depth * by.positions) as (turn, entry):
            k, m = self._entry_of_x(entry)
            position = here.at * by.positions + m
            column = step + k
            known = tirx.all(column < here.count, position < of.positions)
            if of.kept is not None:
                # Behind the last column some other is read, and not used.
                column = self.list[tirx.min(here.first + column, of.kept - 1)]
            indices, condition = of.x.place(here.b, column, position)
            guard = known if condition is None else tirx.all(known, condition)
            value = tirx.if_then_else(guard, self.x[tuple(indices)], T.float32(0))
            T.buffer_store(x.coming, value, [turn])
        with self._shared_out(here.thread, by.depth * by.outputs) as (turn, entry):
            k, n = entry // by.outputs, entry % by.outputs
            guard = step + k < here.count
            if of.w is None:
                value = self.w[here.first + step + k, n]
            else:
                output = here.row * by.outputs + n
                indices, _ = of.w.place(here.b, output, step + k)
                guard = tirx.all(guard, output < of.outputs)
                value = self.w[tuple(indices)]
            T.buffer_store(w.coming, tirx.if_then_else(guard, value, T.float32(0)), [turn])

    def _share(self, x: Matrix, w: Matrix, thread: Expr) -> None:
        """Put what came to registers into shared memory."""
        by = self.by
        with self._shared_out(thread, by.depth * by.positions) as (turn, entry):
            k, m = self._entry_of_x(entry)
            T.buffer_store(x.shared, x.coming[turn], [k * x.stride + m])
        with self._shared_out(thread, by.depth * by.outputs) as (turn, entry):
            k, n = entry // by.outputs, entry % by.outputs
            T.buffer_store(w.shared, w.coming[turn], [k * w.stride + n])

    def _entry_of_x(self, entry: Expr) -> tuple[Expr, Expr]:
        """Return column and position of an entry, so that neighbours are so in memory too."""
        if self.of.columns_last:
            return entry % self.by.depth, entry // self.by.depth
        return entry // self.by.positions, entry % self.by.positions

    @contextmanager
    def _shared_out(self, thread: Expr, entries: int) -> Iterator[tuple[Expr, Expr]]:
        """Loop over the entries that a thread brings; neighbours bring neighbouring ones."""
        threads = self.by.threads
        with T.unroll(-(-entries // threads)) as turn:
            entry = turn * threads + thread
            if entries % threads == 0:
                yield turn, entry
                return
            with T.If(entry < entries), T.Then():
                yield turn, entry

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
