"""Program: kernel calls in order, on buffers that are planned into one arena."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.protocol import LayerDecision, Note
from tilewright.targets.arena import place
from tilewright.targets.kernels.pen import Pen, dtype_of
from tilewright.targets.lower.window import Buffer, Window, compact, strides_of

ALIGNMENT = 64  # bytes: a cache line, and what DLPack asks of an array


class Kernel(Protocol):
    """A kernel description: hashable, so that equal calls share one function.

    Its `repr` must tell it from all others.
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        ...

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        ...

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        ...


@dataclass(frozen=True)
class Ref:
    """An argument of a call: where in which buffer it starts."""

    buffer: Buffer
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call, for one or more nodes of the graph."""

    kernel: Kernel
    refs: tuple[Ref, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Island:
    """Nodes that onnxruntime runs, between kernel calls."""

    node: gs.Node
    inputs: tuple[tuple[str, Window], ...]
    outputs: tuple[tuple[str, Window], ...]


# What runs at a time: calls in a row, or an island.
Part = list[Call] | Island


@dataclass(eq=False)
class Program:
    """What a graph becomes: steps, their constants, and where inputs and outputs are."""

    steps: list[Call | Island] = field(default_factory=list)
    constants: dict[Buffer, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, Window] = field(default_factory=dict)
    outputs: dict[str, Window] = field(default_factory=dict)
    layers: list[LayerDecision] = field(default_factory=list)
    islands: list[Note] = field(default_factory=list)
    # Inputs that pick entries of a table, and how many the smallest such table has.
    entries: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    def buffer(self, stem: str, dtype: str, elements: int) -> Buffer:
        """Return new memory in the arena."""
        self._count += 1
        return Buffer(f"{stem}#{self._count}", dtype, elements)

    def tensor(
        self,
        stem: str,
        shape: Iterable[int],
        dtype: str,
        order: Sequence[int] | None = None,
        run: int = 0,
    ) -> Window:
        """Return a new tensor, its axes laid out as `compact` says."""
        extents = tuple(shape)
        _, elements = strides_of(extents, order, run)
        return compact(self.buffer(stem, dtype, elements), extents, order, run)

    def constant(self, stem: str, values: np.ndarray) -> Window:
        """Return a constant tensor; float32 goes to the weights, int32 to the indices."""
        values = np.ascontiguousarray(values)
        self._count += 1
        buffer = Buffer(f"{stem}#{self._count}", kind_of(values.dtype), values.size, True)
        self.constants[buffer] = values.reshape(-1)
        return compact(buffer, values.shape)

    def call(
        self, kernel: Kernel, arguments: Iterable[Window | Ref], nodes: Iterable[str]
    ) -> None:
        """Append a kernel call."""
        refs = tuple(a if isinstance(a, Ref) else Ref(a.buffer, a.offset) for a in arguments)
        assert len(refs) == len(kernel.kinds()), f"{kernel.name}: arguments and kinds differ"
        for ref, kind in zip(refs, kernel.kinds(), strict=True):
            assert ref.buffer.dtype == kind, f"{kernel.name}: {ref.buffer} is not {kind}"
        self.steps.append(Call(kernel, refs, tuple(nodes)))


def segments(program: Program) -> list[Part]:
    """Cut a program at its islands."""
    parts: list[Part] = []
    for step in program.steps:
        if isinstance(step, Island):
            parts.append(step)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(step)
        else:
            parts.append([step])
    return parts


def nodes_of(parts: Sequence[Part]) -> list[frozenset[str]]:
    """Return the names of the nodes that each part runs."""
    return [
        frozenset(name for call in part for name in call.nodes)
        if isinstance(part, list)
        else frozenset({part.node.name})
        for part in parts
    ]


def kind_of(dtype: np.dtype) -> str:
    """Return the base array that constants of a dtype live in."""
    return {"float32": "weights", "int32": "indices"}.get(dtype.name, dtype.name)


class Pool:
    """Constants of some programs, one behind the other, kind by kind; equal ones once.

    Starts are aligned, so that vectors of weights do not straddle cache lines.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._starts: dict[tuple[str, bytes], int] = {}
        self._ends: dict[str, int] = {}

    def take(self, program: Program) -> dict[Buffer, int]:
        """Take a program's constants over; return where each starts, in elements."""
        constants, program.constants = program.constants, {}
        return {buffer: self._place(buffer.dtype, array) for buffer, array in constants.items()}

    def kinds(self) -> list[str]:
        """Return the base arrays that there are constants of."""
        return sorted(self._arrays)

    def pieces(self, kind: str) -> Iterator[np.ndarray]:
        """Yield the constants of a kind and the gaps behind them, in order."""
        each = _elements_of_line(kind)
        for array in self._arrays.get(kind, ()):
            yield array
            yield np.zeros(-array.size % each, array.dtype)

    def _place(self, kind: str, array: np.ndarray) -> int:
        key = (kind, hashlib.sha256(array.data).digest())
        if key not in self._starts:
            each = _elements_of_line(kind)
            self._starts[key] = self._ends.get(kind, 0)
            self._ends[kind] = self._starts[key] + -(-array.size // each) * each
            self._arrays.setdefault(kind, []).append(array)
        return self._starts[key]


def _elements_of_line(kind: str) -> int:
    return ALIGNMENT // np.dtype(dtype_of(kind)).itemsize


def plan_arena(program: Program) -> tuple[dict[Buffer, int], int]:
    """Give every buffer that is not constant a place in one arena; return byte offsets, size.

    Buffers whose lives do not overlap share bytes.
    """
    lives = dict(sorted(_lives(program).items(), key=lambda item: item[0].name))
    return place(lives, {buffer: _bytes(buffer) for buffer in lives})


def _lives(program: Program) -> dict[Buffer, tuple[int, int]]:
    lives: dict[Buffer, tuple[int, int]] = {}

    def touch(buffer: Buffer, when: int) -> None:
        if not buffer.constant:
            first, last = lives.get(buffer, (when, when))
            lives[buffer] = (min(first, when), max(last, when))

    for window in program.inputs.values():
        touch(window.buffer, -1)
    for when, step in enumerate(program.steps):
        if isinstance(step, Call):
            for ref in step.refs:
                touch(ref.buffer, when)
        else:
            for _, window in (*step.inputs, *step.outputs):
                touch(window.buffer, when)
    for window in program.outputs.values():
        touch(window.buffer, len(program.steps))
    return lives


def _bytes(buffer: Buffer) -> int:
    raw = buffer.elements * np.dtype(buffer.dtype).itemsize
    # Vectors may read past the end of the last row by less than one register.
    return -(-raw // ALIGNMENT) * ALIGNMENT + ALIGNMENT
