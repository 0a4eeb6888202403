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

    def width_for(self, extent: int) -> int:
        """Return the widest vector, a power of two, that `extent` elements fill."""
        assert extent > 0, f"{extent} elements fill no vector"
        width = self.lanes
        while width > extent:
            width //= 2
        return width


class Pen:
    """What a kernel writes with while its PrimFunc is open."""

    def __init__(self, isa: Isa, bases: Sequence[Expr], offsets: Sequence[Expr]) -> None:
        """Write to arguments that lie in `bases`, one an argument, from `offsets` on."""
        self.isa = isa
        self._bases = bases
        self._args = offsets

    def behind(self, count: int) -> "Pen":
        """Return a pen to the arguments behind the first `count`."""
        return Pen(self.isa, self._bases[count:], self._args[count:])

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
        """Loop over the threads' pool; serial where the work does not pay for the launch."""
        if not when or (isinstance(extent, int) and extent == 1):
            with self.serial(extent) as index:
                yield index
            return
        with T.parallel(extent) as index:
            yield index

    @contextmanager
    def shared(self, launch: int, when: bool = True) -> Iterator["Share"]:
        """Open one share a thread; argument `launch` says how many threads there are."""
        shares = self.register(self.load(launch, 0)) if when else 1
        with self.parallel(shares, when) as index:
            yield Share(self, index, shares)


@dataclass(frozen=True)
class Share:
    """What one of `shares` threads does of some work."""

    pen: Pen
    index: Expr
    shares: Expr

    def of(self, count: Expr) -> tuple[Expr, Expr]:
        """Return the first of this share's pieces, of `count` in all, and the one behind."""
        low = self.pen.register(self.index * count // self.shares)
        return low, self.pen.register((self.index + 1) * count // self.shares)


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

    `kinds` names each argument's base array: its dtype, "weights", "indices", or "launch" (the
    number of threads). The function takes each distinct base once, sorted, then one int32
    offset an argument.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        bases = {}
        for kind in sorted(set(kinds)):
            extent = tirx.Var(f"{kind}_elements", "int64")
            bases[kind] = T.arg(kind, T.buffer((extent,), dtype_of(kind)))
        offsets = [T.arg(f"at{i}", tirx.Var(f"at{i}", "int32")) for i in range(len(kinds))]
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        body(Pen(isa, [bases[kind] for kind in kinds], offsets))
    return builder.get()


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
