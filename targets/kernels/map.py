"""Elementwise kernels: a chain over tensors of one shape, in any layouts; copies, too."""

import math
from dataclasses import dataclass

from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.pen import Expr, Pen

_PARALLEL_ELEMENTS = 30_000
_CHUNK_VECTORS = 64


@dataclass(frozen=True)
class MapKernel:
    """outputs = chain(operands) over `shape`, whose last axis is the lanes.

    `operands` and `outputs` are rows of strides, one entry an axis. Steps of 1 along the last
    axis are fast, others right.
    """

    shape: tuple[int, ...]
    chain: Chain
    operands: tuple[tuple[int, ...], ...]
    operand_dtypes: tuple[str, ...]
    outputs: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[str, ...]

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        steps = [step.op.lower() for step in self.chain.steps]
        return "map_" + ("_".join(steps[:4]) or "copy")

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments: operands, then outputs."""
        return (*self.operand_dtypes, *self.output_dtypes)

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        *outer, inner = self.shape
        work = math.prod(self.shape) * max(1, len(self.chain.steps) // 2)
        parallel = work >= _PARALLEL_ELEMENTS
        rows = math.prod(outer)
        width = pen.isa.width_for(inner)
        if rows >= 4 or not parallel:
            with pen.parallel(rows, parallel) as row:
                self._row(pen, indices_of(pen, row, outer), 0, inner, width)
            return
        vectors = inner // width
        chunks = max(1, vectors // _CHUNK_VECTORS)
        with pen.parallel(chunks) as chunk:
            low = pen.register(chunk * vectors // chunks * width)
            high = pen.register((chunk + 1) * vectors // chunks * width)
            with pen.serial(rows) as row:
                at = indices_of(pen, row, outer)
                with pen.serial((high - low) // width) as v:
                    self._vector(pen, at, low + v * width, width)
        if vectors * width < inner:
            with pen.serial(rows) as row:
                self._vector(pen, indices_of(pen, row, outer), inner - width, width)

    def _row(self, pen: Pen, at: list[Expr], low: int, inner: int, width: int) -> None:
        with pen.serial(inner // width) as v:
            self._vector(pen, at, low + v * width, width)
        if inner % width:
            self._vector(pen, at, inner - width, width)

    def _vector(self, pen: Pen, at: list[Expr], x: Expr, width: int) -> None:
        def place(strides: tuple[int, ...]) -> Expr:
            return sum((i * s for i, s in zip(at, strides, strict=False) if s), 0) + (
                x * strides[-1]
            )

        def operand(i: int) -> Expr:
            strides = self.operands[i]
            return pen.load(i, place(strides), width, stride=strides[-1])

        values = run_chain(pen, self.chain, None, operand, width)
        for i, (value, strides) in enumerate(zip(values, self.outputs, strict=True)):
            at_output = len(self.operands) + i
            pen.store(at_output, place(strides), value, width, stride=strides[-1])


def indices_of(pen: Pen, flat: Expr, extents: list[int]) -> list[Expr]:
    """Take a flat index apart, last axis fastest."""
    indices: list[Expr] = []
    for axis, extent in enumerate(extents):
        behind = math.prod(extents[axis + 1 :])
        index = flat // behind if behind > 1 else flat
        indices.append(pen.register(index % extent if axis else index))
    return indices
