"""TOSA graphs of version 1.0, operator by operator, by Arm's own serializer."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tosa_serializer as ts

# What both Vela 5.2 and the reference model read: a release, not a draft.
_VERSION = (1, 0, 0, False)
INT8: np.dtype[Any] = np.dtype(np.int8)
INT16: np.dtype[Any] = np.dtype(np.int16)
INT32: np.dtype[Any] = np.dtype(np.int32)
_KINDS = {INT8: ts.DType.INT8, INT16: ts.DType.INT16, INT32: ts.DType.INT32}
_BETWEEN_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Tensor(NamedTuple):
    """A tensor of the graph that is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Scale(NamedTuple):
    """Real factors as TOSA has them: `multipliers` times 2 to the power of minus `shifts`."""

    multipliers: np.ndarray
    shifts: np.ndarray

    @classmethod
    def of(cls, real: float | np.ndarray) -> "Scale":
        """Round positive factors to 31 bits; TOSA 1.0, section 2.10.1: shifts are 2 to 62."""
        mantissa, exponent = np.frexp(np.atleast_1d(np.asarray(real, np.float64)))
        shifts = 31 - exponent.astype(np.int64)
        values = np.rint(np.ldexp(mantissa, 31 - np.maximum(shifts - 62, 0))).astype(np.int64)
        full = values == 1 << 31
        return cls(
            np.where(full, values // 2, values).astype(np.int32),
            (np.minimum(shifts, 62) - full).astype(np.int8),
        )

    @property
    def fits(self) -> bool:
        """Say whether the shifts are in range."""
        return bool((self.shifts >= 2).all())


class Writer:
    """Writes one graph. Names of tensors begin with `prefix`, which may change meanwhile."""

    def __init__(self) -> None:
        self.prefix = ""
        # The prefix of each operator that is no constant, in order.
        self.origins: list[str] = []
        self._serializer = ts.TosaSerializer("", ts.ConstMode.EMBED, *_VERSION)
        self._count = 0
        self._shared: dict[tuple[object, ...], str] = {}

    def input(self, name: str, shape: Sequence[int]) -> Tensor:
        """Add an int8 tensor that a caller feeds."""
        self._serializer.addInputTensor(
            ts.TosaSerializerTensor(name, list(shape), ts.DType.INT8)
        )
        return Tensor(name, tuple(shape), INT8)

    def output(self, tensor: Tensor) -> None:
        """Make a tensor one that a caller gets."""
        self._block.addOutput(tensor.name)

    def data(self) -> bytes:
        """Return the file's bytes."""
        return bytes(self._serializer.serialize())

    def constant(self, values: np.ndarray) -> Tensor:
        """Add constant int8, int16 or int32 values."""
        name = self._fresh()
        self._serializer.addConst(list(values.shape), _KINDS[values.dtype], values, name)
        return Tensor(name, values.shape, values.dtype)

    def layer(
        self,
        name: str,
        x: Tensor,
        weights: np.ndarray,
        bias: np.ndarray,
        zero: int,
        shape: Sequence[int],
        *attributes: Sequence[int],
    ) -> Tensor:
        """Conv2d, DepthwiseConv2d or TransposeConv2d of int8, to int32.

        `zero` is the zero point of `x`, `attributes` are pads (top, bottom, left, right),
        strides and dilations, as far as the operator has them.
        """
        w, b = self.constant(np.ascontiguousarray(weights)), self.constant(bias)
        inputs = [x, w, b, self.scalar(zero, INT8), self.scalar(0, INT8)]
        lists = map(list, attributes)
        return self.op(name, inputs, shape, INT32, *lists, False, ts.DType.INT32)

    def matmul(self, a: Tensor, b: Tensor, zeros: tuple[int, int]) -> Tensor:
        """MATMUL of (batch, rows, inner) and (batch, inner, columns)."""
        points = [self.scalar(zero, INT8) for zero in zeros]
        shape = (a.shape[0], a.shape[1], b.shape[2])
        return self.op("MatMul", [a, b, *points], shape, INT32)

    def rescale(
        self,
        x: Tensor,
        scale: Scale,
        dtype: np.dtype,
        zero_in: int = 0,
        zero_out: int = 0,
    ) -> Tensor:
        """RESCALE: the factor times (x minus `zero_in`), rounded once, plus `zero_out`."""
        by_channel = len(scale.multipliers) > 1
        inputs = [
            x,
            self.constant(scale.multipliers),
            self.constant(scale.shifts),
            self.scalar(zero_in, x.dtype),
            self.scalar(zero_out, dtype),
        ]
        rounding = ts.RoundingMode.SINGLE_ROUND
        return self.op(
            "Rescale", inputs, x.shape, dtype, True, rounding, by_channel, False, False
        )

    def clamp(self, x: Tensor, low: int, high: int) -> Tensor:
        """CLAMP of int8."""
        ends = (list(np.array([end], np.int8).view(np.uint8)) for end in (low, high))
        return self.op("Clamp", [x], x.shape, INT8, *ends, ts.NanPropagationMode.PROPAGATE)

    def op(
        self,
        name: str,
        inputs: Sequence[Tensor],
        shape: Sequence[int],
        dtype: np.dtype,
        *attributes: Any,
    ) -> Tensor:
        """Any operator, by the name of its attributes ("ReduceSum" for REDUCE_SUM)."""
        attribute = ts.TosaSerializerAttribute()
        getattr(attribute, f"{name}Attribute")(*attributes)
        spelled = "MATMUL" if name == "MatMul" else _BETWEEN_WORDS.sub("_", name).upper()
        result = self._fresh()
        self._block.addTensor(result, list(shape), _KINDS[dtype])
        self.origins.append(self.prefix)
        self._serializer.addOperator(
            getattr(ts.Op, spelled), [t.name for t in inputs], [result], attribute
        )
        return Tensor(result, tuple(shape), dtype)

    def binary(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Add, Sub, Mul and the like, with broadcasting, on int32."""
        inputs = [a, b, self.scalar(0, INT8)] if name == "Mul" else [a, b]
        attributes = (True,) if name == "ArithmeticRightShift" else ()
        return self.op(name, inputs, np.broadcast_shapes(a.shape, b.shape), INT32, *attributes)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """RESHAPE, if it is another shape."""
        assert math.prod(shape) == math.prod(x.shape), f"{x} as {shape}"
        if tuple(shape) == x.shape:
            return x
        return self.op("Reshape", [x, self.sizes(shape)], shape, x.dtype)

    def transpose(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        """TRANSPOSE; a RESHAPE where only axes of size 1 change places."""
        shape = [x.shape[axis] for axis in axes]
        moved = [axis for axis in axes if x.shape[axis] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.op("Transpose", [x], shape, x.dtype, list(axes))

    def slice(self, x: Tensor, starts: Sequence[int], shape: Sequence[int]) -> Tensor:
        """SLICE, if anything is cut off."""
        if tuple(shape) == x.shape:
            return x
        return self.op("Slice", [x, self.sizes(starts), self.sizes(shape)], shape, x.dtype)

    def scalar(self, value: int, dtype: np.dtype) -> Tensor:
        """Return a constant of one number, the same for the same number."""
        key = ("scalar", value, dtype)
        if key not in self._shared:
            self._shared[key] = self.constant(np.array([value], dtype)).name
        return Tensor(self._shared[key], (1,), dtype)

    def sizes(self, values: Sequence[int]) -> Tensor:
        """Return a constant shape."""
        key = ("shape", *values)
        if key not in self._shared:
            name = self._fresh()
            content = np.asarray(values, np.int64)
            self._serializer.addConst([len(values)], ts.DType.SHAPE, content, name)
            self._shared[key] = name
        return Tensor(self._shared[key], (len(values),), np.dtype(np.int64))

    @property
    def _block(self) -> Any:
        return self._serializer.currRegion.currBasicBlock

    def _fresh(self) -> str:
        self._count += 1
        return f"{self.prefix}#{self._count}"
