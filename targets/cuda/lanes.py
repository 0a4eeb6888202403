"""Multiply on a thread's own registers, in float32."""

from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.cuda.tiling import Matrix, Tiling
from tilewright.targets.kernels.pen import Expr


class Lanes:
    """Each thread has some outputs and positions of its block's, and their sums."""

    scope, gap = "local", 0

    def __init__(self, by: Tiling, sums: Expr, block: tuple[Expr, Expr, Expr]) -> None:
        self.by, self.sums, self.block = by, sums, block

    def start(self, beside: Expr, along: Expr, thread: Expr) -> None:
        """Set the sums of a thread to zero, whose first output and position these are."""
        by, (b, n, m) = self.by, self.block
        self.beside, self.along = beside, along
        self.w = T.sblock_alloc_buffer((by.thread_outputs,), "float32", scope="local")
        self.x = T.sblock_alloc_buffer((by.thread_positions,), "float32", scope="local")
        self.place = (b, n + beside, m + along)
        with T.unroll(by.thread_outputs) as i, T.unroll(by.thread_positions) as j:
            T.buffer_store(self.sums, T.float32(0), list(self._at(i, j)))

    def multiply(self, w: Matrix, x: Matrix) -> None:
        """Add the products of what is in shared memory."""
        by = self.by
        with T.serial(by.depth) as k:
            with T.unroll(by.thread_outputs) as i:
                T.buffer_store(self.w, w.at(k, self.beside + i), [i])
            with T.unroll(by.thread_positions) as j:
                T.buffer_store(self.x, x.at(k, self.along + j), [j])
            with T.unroll(by.thread_outputs) as i, T.unroll(by.thread_positions) as j:
                at = self._at(i, j)
                T.buffer_store(self.sums, self.sums[at] + self.w[i] * self.x[j], list(at))

    def finish(self) -> None:
        """Leave the sums where they are."""

    def _at(self, i: Expr, j: Expr) -> tuple[Expr, Expr, Expr]:
        b, n, m = self.place
        return b, n + i, m + j
