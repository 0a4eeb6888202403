"""Kernels that follow indices: embedding lookup, and resizing by tables of source places."""

import math
from dataclasses import dataclass

from tvm import tirx

from tilewright.targets.kernels.map import indices_of
from tilewright.targets.kernels.pen import Pen

_PARALLEL_ELEMENTS = 20_000


@dataclass(frozen=True)
class LookupKernel:
    """Copy rows of a table: target[i, :] = table[ids[i], :] (Gather on axis 0).

    `ids` and `target` are strides over the index axes `shape`; a row has `elements` that step
    by `step` in the table. Negative ids count from the end, as ONNX says.
    """

    shape: tuple[int, ...]
    elements: int
    entries: int
    row_stride: int
    step: int
    ids: tuple[int, ...]
    id_dtype: str
    table_kind: str
    target: tuple[int, ...]

    name = "lookup"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays: ids, table, target."""
        return (self.id_dtype, self.table_kind, "float32")

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        count = math.prod(self.shape)
        width = pen.isa.width_for(self.elements)
        with pen.parallel(count, count * self.elements >= _PARALLEL_ELEMENTS) as flat:
            at = indices_of(pen, flat, list(self.shape))
            zero = tirx.const(0, "int32")
            place = sum((i * s for i, s in zip(at, self.ids, strict=True) if s), zero)
            raw = pen.register(tirx.Cast("int32", pen.load(0, place)))
            entry = pen.register(tirx.Select(raw < 0, raw + self.entries, raw))
            # An id out of range would read foreign memory. Inputs are checked; what the network
            # computes is clamped, where onnxruntime refuses it.
            safe = tirx.min(tirx.max(entry, zero), tirx.const(self.entries - 1, "int32"))
            source = pen.register(safe * self.row_stride)
            target = pen.register(
                sum((i * s for i, s in zip(at, self.target, strict=True) if s), zero)
            )
            starts = self.elements // width
            with pen.serial(starts) as v:
                x = v * width
                pen.store(
                    2, target + x, pen.load(1, source + x * self.step, width, self.step), width
                )
            if self.elements % width:
                x = self.elements - width
                pen.store(
                    2, target + x, pen.load(1, source + x * self.step, width, self.step), width
                )


@dataclass(frozen=True)
class ResizeKernel:
    """Resize planes by tables: each output row and column mixes `taps` source rows, columns.

    Arguments: source, target, row places, column places (indices: out x taps), row shares,
    column shares (weights: out x taps). Nearest has one tap, linear two.
    """

    planes: tuple[int, ...]
    out_height: int
    out_width: int
    taps: int
    source: tuple[int, ...]  # strides over planes, row, column
    target: tuple[int, ...]

    name = "resize"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return ("float32", "float32", "indices", "indices", "weights", "weights")

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        rows = math.prod(self.planes) * self.out_height
        with pen.parallel(rows, rows * self.out_width >= _PARALLEL_ELEMENTS) as flat:
            at = indices_of(pen, flat, [*self.planes, self.out_height])
            planes, y = at[:-1], at[-1]
            zero = tirx.const(0, "int32")
            base = sum((i * s for i, s in zip(planes, self.source, strict=False) if s), zero)
            target = sum((i * s for i, s in zip(at, self.target, strict=False) if s), zero)
            sources = [
                pen.register(base + pen.load(2, y * self.taps + t) * self.source[-2])
                for t in range(self.taps)
            ]
            shares = [pen.register(pen.load(4, y * self.taps + t)) for t in range(self.taps)]
            target = pen.register(target)
            with pen.serial(self.out_width) as x:
                total = None
                for row, share in zip(sources, shares, strict=True):
                    for t in range(self.taps):
                        column = pen.load(3, x * self.taps + t) * self.source[-1]
                        term = pen.load(0, row + column)
                        if self.taps > 1:
                            term = term * share * pen.load(5, x * self.taps + t)
                        total = term if total is None else total + term
                pen.store(1, target + x, total)
