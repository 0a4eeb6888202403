"""Pen: writes one PrimFunc, loop by loop, with explicit vectors.

TVM's script builder is used directly: a Python loop is unrolled code, `serial` and `parallel`
are real loops, and values of `width` > 1 are vectors. Memory is reached through numbered
arguments, each a base array plus an element offset that the caller passes at run time, so one
PrimFunc serves every call of the same form.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

Expr = Any  # a tirx.PrimExpr: TVM ships no types


_STACK_BYTES = 16_384  # of one buffer; a worker thread's whole stack is some megabytes


@dataclass(frozen=True)
class Isa:
    """The vector unit that kernels are written for."""

    name: str
    mcpu: str
    lanes: int  # float32 lanes of a register
    registers: int
    dot: str = "words"  # how 8-bit integers are multiplied: see `integer.py`
    features: tuple[str, ...] = ()  # beyond mcpu, as LLVM spells them
    needs: tuple[str, ...] = ()  # of the CPU, as /proc/cpuinfo spells them
    triple: str = ""  # of a machine other than this one
    by_element: bool = False  # vectors are multiplied by an element of another, at no cost

    def width_for(self, extent: int) -> int:
        """Return the widest vector, a power of two, that `extent` elements fill."""
        assert extent > 0, f"{extent} elements fill no vector"
        width = self.lanes
        while width > extent:
            width //= 2
        return width


class Pen:
    """What a kernel writes with while its PrimFunc is open."""

    def __init__(
        self, isa: Isa, bases: Sequence[Expr], offsets: Sequence[Expr], launch: Expr
    ) -> None:
        """Write to arguments that lie in `bases`, one an argument, from `offsets` on.

        `launch` is the memory of `launch_memory`.
        """
        self.isa = isa
        self._bases = bases
        self._args = offsets
        self._launch = launch

    def behind(self, count: int) -> "Pen":
        """Return a pen to the arguments behind the first `count`."""
        return Pen(self.isa, self._bases[count:], self._args[count:], self._launch)

    def beside(self, at: int, local: "Local") -> "Pen":
        """Return a pen to one argument more: scratch memory, as number `at`."""
        bases, args = [*self._bases], [*self._args]
        bases.insert(at, local.buffer)
        args.insert(at, local.start)
        return Pen(self.isa, bases, args, self._launch)

    def load(self, arg: int, index: Expr, width: int = 1, stride: int = 1) -> Expr:
        """Read `width` elements from `index` on, `stride` apart (0: one, in every lane)."""
        buffer = self._bases[arg]
        at = self._args[arg] + index
        if width == 1:
            return buffer[at]
        if stride == 0:
            return tirx.Broadcast(buffer[at], width)
        return buffer[tirx.Ramp(at, stride, width)]

    def store(
        self, arg: int, index: Expr, value: Expr, width: int = 1, stride: int = 1
    ) -> None:
        """Write a scalar, or `width` elements `stride` apart."""
        buffer = self._bases[arg]
        at = self._args[arg] + index
        T.buffer_store(buffer, value, [at if width == 1 else tirx.Ramp(at, stride, width)])

    def elements(self, arg: int, index: Expr, count: int, lanes: int) -> list[Expr]:
        """Read `count` neighbours, each into all lanes of a vector.

        Where a vector may be multiplied by an element of another, they are read as vectors: one
        register holds as many as it has lanes.
        """
        if not self.isa.by_element or count % lanes or lanes == 1:
            return [self.load(arg, index + i, lanes, stride=0) for i in range(count)]
        vectors = [
            self.register(self.load(arg, index + i, lanes)) for i in range(0, count, lanes)
        ]
        return [T.Shuffle([v], [i] * lanes) for v in vectors for i in range(lanes)]

    def prefetch(self, arg: int, index: Expr) -> None:
        """Ask for the cache line of an element, which may lie behind the array's end."""
        address = tirx.address_of(self._bases[arg][self._args[arg] + index])
        to_read, near, data = (tirx.const(n, "int32") for n in (0, 3, 1))
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, to_read, near, data))

    def local(self, elements: int, dtype: str = "float32") -> "Local":
        """Return scratch memory of this thread: registers, where all indices are constant.

        TVM puts only small "global" buffers on the stack, where LLVM turns them into registers;
        others cost two calls to the runtime's allocator, which a few more on the stack do not.
        """
        widest = 8  # bytes of any element
        if elements * widest >= _STACK_BYTES:
            return Local(T.alloc_buffer((elements,), dtype, scope="local"))
        keep = {"disable_lower_builtin": True}
        return Local(T.alloc_buffer((elements,), dtype, scope="global", annotations=keep))

    def register(self, value: Expr) -> Expr:
        """Name an intermediate value, so that it is computed once.

        Vectors of bool stay unnamed: TVM's analyzer asserts on them.
        """
        if not isinstance(value, int) and str(value.ty).startswith("boolx"):
            return value
        return T.bind(value)

    def opaque(self, value: Expr, dtype: str = "int32", width: int = 1) -> Expr:
        """Pass a value through scratch memory, which LLVM turns back into a register.

        TVM's simplifier looks through names but not through memory: it would walk all that a
        deep expression hangs on, once a use, for seconds.
        """
        cell = self.local(width, dtype)
        cell.store(0, value, width)
        return self.register(cell.load(0, width))

    @contextmanager
    def serial(self, extent: Expr) -> Iterator[Expr]:
        """Loop; a loop of one round is no loop."""
        if isinstance(extent, int) and extent == 1:
            yield tirx.const(0, "int32")
            return
        with T.serial(extent) as index:
            yield index

    @contextmanager
    def parallel(self, extent: Expr, when: bool = True) -> Iterator[Expr]:
        """Loop, and let threads share the rounds; serial where that does not pay for itself."""
        if not when or (isinstance(extent, int) and extent == 1):
            with self.serial(extent) as index:
                yield index
            return
        with (
            self.shared() as share,
            share.pieces(extent) as (low, high),
            self.serial(high - low) as i,
        ):
            yield self.register(low + i)

    @contextmanager
    def shared(self, when: bool = True) -> Iterator["Share"]:
        """Open one share a thread; where `when` is false the calling thread does all of it."""
        if not when:
            yield Share(self, tirx.const(0, "int32"), 1)
            return
        launch = self._launch
        shares = self.register(launch[0])
        turn = self.register(1 - launch[1])
        T.buffer_store(launch, turn, [1])
        nothing = tirx.const(0, "int32")
        with T.attr(nothing, "pragma_import_llvm", _TAKE), T.parallel(shares) as index:
            own = self.register(_line(index, 1 - turn))
            T.buffer_store(launch, tirx.Broadcast(nothing, _LINE), [tirx.Ramp(own, 1, _LINE)])
            yield Share(self, index, shares, _Counters(launch, turn))

    @contextmanager
    def parts(self, most: int) -> Iterator["Share"]:
        """Open one share a thread, for at most so many: each has its part and no other."""
        shares = self.register(tirx.min(self._launch[0], most))
        with T.parallel(shares) as index:
            yield Share(self, index, shares)


# No TVM builtin adds atomically on a CPU. LLVM makes one instruction of it, in place.
_TAKE = """
define linkonce_odr i32 @tilewright_take(ptr %counter) alwaysinline {
  %taken = atomicrmw add ptr %counter, i32 1 monotonic
  ret i32 %taken
}
"""
_LINE = 16  # int32 of a cache line
_PIECES, _COARSE_PIECES = 8, 2  # of a thread's part of the work


def launch_memory(threads: int) -> np.ndarray:
    """Return the memory that threads share their work in, int32.

    The number of threads, and whose turn it is: of each thread's two lines of counters, one is
    in use, and one is being zeroed for the kernel to come.
    """
    memory = np.zeros((1 + 2 * threads) * _LINE, np.int32)
    memory[0] = threads
    return memory


def _line(thread: Expr, turn: Expr) -> Expr:
    return (1 + 2 * thread + turn) * _LINE


class _Counters:
    """The counters of one kernel: each loop over pieces has one a thread."""

    def __init__(self, launch: Expr, turn: Expr) -> None:
        self._launch = launch
        self._turn = turn
        self._used = 0

    def new(self) -> Callable[[Expr], Expr]:
        """Return what takes a thread's counter of a loop and adds one, as others may do too."""
        assert self._used < _LINE, "a kernel has too many loops that threads share"
        number = self._used
        self._used += 1

        def take(thread: Expr) -> Expr:
            cell = self._launch[_line(thread, self._turn) + number]
            return T.bind(tirx.call_extern("int32", "tilewright_take", tirx.address_of(cell)))

        return take


@dataclass(frozen=True)
class Share:
    """What one of `shares` threads does of some work."""

    pen: Pen
    index: Expr
    shares: Expr
    counters: _Counters | None = None

    def of(self, count: Expr) -> tuple[Expr, Expr]:
        """Return the first of this share's pieces, of `count` in all, and the one behind."""
        return self._part(self.index, count)

    @contextmanager
    def pieces(
        self, count: Expr, most: int | None = None, coarse: bool = False
    ) -> Iterator[tuple[Expr, Expr]]:
        """Loop over `count` in pieces: those of its own part first, then what others left.

        Cores are not equally fast: some are small, some share theirs with a neighbour. Gives
        the first of a piece and the one behind; there are up to `most` in it. Pieces are
        `coarse` where beginning one costs much.
        """
        pen = self.pen
        if self.counters is None:
            assert isinstance(self.shares, int), "parts of `Pen.parts` have no pieces"
            each = count if most is None else most
            with pen.serial(1 if most is None else (count + most - 1) // most) as i:
                yield pen.opaque(i * each), pen.opaque(tirx.min((i + 1) * each, count))
            return
        take = self.counters.new()
        pieces = _COARSE_PIECES if coarse else _PIECES
        size = tirx.max(count // (self.shares * pieces), 1)
        size = pen.register(size if most is None else tirx.min(size, most))
        with pen.serial(self.shares) as further:
            owner = pen.register((self.index + further) % self.shares)
            low, high = self._part(owner, count)
            left = pen.local(1, "int32")
            left.store(0, tirx.const(1, "int32"))
            with T.While(left.load(0) != 0):
                first = pen.opaque(low + take(owner) * size)
                with T.If(first < high):
                    with T.Then():
                        yield first, pen.opaque(tirx.min(first + size, high))
                    with T.Else():
                        left.store(0, tirx.const(0, "int32"))

    def _part(self, index: Expr, count: Expr) -> tuple[Expr, Expr]:
        # Divided first: index * count may not fit 32 bits.
        each, more = count // self.shares, count % self.shares
        low = self.pen.register(index * each + tirx.min(index, more))
        return low, self.pen.register(low + each + tirx.Select(index < more, 1, 0))


@dataclass(frozen=True)
class Local:
    """Scratch memory inside a kernel, from `start` on."""

    buffer: Expr
    start: Expr = 0

    def behind(self, start: Expr) -> "Local":
        """Return the memory from an element on."""
        return Local(self.buffer, self.start + start)

    def load(self, index: Expr, width: int = 1, stride: int = 1) -> Expr:
        """Read from scratch."""
        index = self.start + index
        if width == 1:
            return self.buffer[index]
        if stride == 0:
            return tirx.Broadcast(self.buffer[index], width)
        return self.buffer[tirx.Ramp(index, stride, width)]

    def store(self, index: Expr, value: Expr, width: int = 1) -> None:
        """Write to scratch."""
        index = self.start + index
        T.buffer_store(
            self.buffer, value, [index if width == 1 else tirx.Ramp(index, 1, width)]
        )


def write_prim_func(
    name: str, isa: Isa, kinds: tuple[str, ...], body: Callable[[Pen], None]
) -> Expr:
    """Return the PrimFunc that `body` writes.

    `kinds` names each argument's base array: its dtype, "weights" or "indices". The function
    takes the arrays of `bases_of` first, then one int32 offset an argument.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        bases = {}
        for kind in bases_of(kinds):
            extent = tirx.Var(f"{kind}_elements", "int64")
            bases[kind] = T.arg(kind, T.buffer((extent,), dtype_of(kind)))
        offsets = [T.arg(f"at{i}", tirx.Var(f"at{i}", "int32")) for i in range(len(kinds))]
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        body(Pen(isa, [bases[kind] for kind in kinds], offsets, bases["launch"]))
    return builder.get()


def bases_of(kinds: Sequence[str]) -> list[str]:
    """Return the base arrays that a function with arguments of some kinds takes, in order."""
    return sorted({*kinds, "launch"})


def dtype_of(kind: str) -> str:
    """Return the element type of a base array."""
    return {"weights": "float32", "indices": "int32", "launch": "int32"}.get(kind, kind)


def vector_starts(extent: int, width: int) -> list[int]:
    """Cover `extent` elements with vectors; the last one moves back over its neighbour.

    Elements that two vectors cover are computed twice, to the same value, which is cheaper than
    a masked tail. `extent` must be at least `width`.
    """
    starts = list(range(0, extent - width + 1, width))
    if starts[-1] + width < extent:
        starts.append(extent - width)
    return starts
