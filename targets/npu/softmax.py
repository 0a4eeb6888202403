"""Softmax in integers: exponentials and a reciprocal by tables of 16 bits.

With T the sum of a row's exponentials e, counted in 1/32767, and n the leading zeros of T:
u = T 2^(n-1) / 2^16 lies in [2^14, 2^15), a table gives r = 2^29 / u, and e r / 2^(30-n) is the
share e / T in steps of 2^-16.
"""

import numpy as np
import tosa_serializer as ts

from tilewright.targets.npu.lower import Lowering, Value, activation, root_of, shape_of
from tilewright.targets.npu.operands import Refused
from tilewright.targets.npu.tosa import INT8, INT16, INT32, Scale, Tensor
from tilewright.targets.npu.units import Unit

_ONE = 32767  # an exponential of 0
_SHARE_BITS = 16
# Each exponential is off by up to half of 1/32767; of more than these in a row that may make a
# step of an 8-bit share.
_MOST = 256
_STEPS = 128  # between the 513 entries of a table of 16-bit numbers


def softmax(lowering: Lowering, unit: Unit) -> Value:
    """Softmax along one axis."""
    source = activation(unit)
    x, shape = lowering.value(source), shape_of(source)
    by_axis = lowering.graph.opset >= 13
    axis = int(root_of(unit).attrs.get("axis", -1 if by_axis else 1)) % len(shape)
    if not by_axis and axis != len(shape) - 1:
        raise Refused("before opset 13 a softmax is of all axes from one on")
    if not lowering.wide_tables:
        raise Refused("a softmax needs tables of 16 bits, which this device has not")
    if shape[axis] > _MOST:
        raise Refused(f"a softmax of {shape[axis]} needs more than 16-bit exponentials")
    axes = (*(a for a in x.axes if a != axis), axis)
    exponentials = _exponentials(lowering, lowering.arranged(x, axes), source.scale)
    shares = _shares(lowering, exponentials)
    return Value(lowering.rounded(unit, shares, 2.0**-_SHARE_BITS), axes)


def _exponentials(lowering: Lowering, x: Tensor, step: float) -> Tensor:
    """Return exp of what each number is below its row's largest, in 1/32767, as int32."""
    writer = lowering.writer
    rows = (*x.shape[:-1], 1)
    most = writer.op(
        "ReduceMax", [x], rows, INT8, len(rows) - 1, ts.NanPropagationMode.PROPAGATE
    )
    one = Scale.of(1.0)
    below = writer.binary("Sub", *(writer.rescale(t, one, INT32) for t in (x, most)))
    # 16-bit tables have an entry every 128 numbers: each difference, of 0 to -255, gets one.
    places = writer.rescale(below, Scale.of(float(_STEPS)), INT16)
    entries = np.rint(_ONE * np.exp(step * np.minimum(np.arange(513) - 256, 0)))
    return _looked_up(lowering, places, entries)


def _shares(lowering: Lowering, exponentials: Tensor) -> Tensor:
    """Return each exponential over the sum of its row, in steps of 2^-16."""
    writer = lowering.writer
    rows = (*exponentials.shape[:-1], 1)
    total = writer.op("ReduceSum", [exponentials], rows, INT32, len(rows) - 1)
    zeros = writer.op("Clz", [total], rows, INT32)
    ranks = (1,) * len(rows)
    one = writer.reshape(writer.scalar(1, INT32), ranks)
    thirty = writer.reshape(writer.scalar(30, INT32), ranks)
    up = writer.binary("LogicalLeftShift", total, writer.binary("Sub", zeros, one))
    places = writer.rescale(up, Scale.of(2.0**-16), INT16)
    entries = np.minimum(2.0**29 / np.maximum(_STEPS * (np.arange(513) - 256.0), 2**14), _ONE)
    reciprocal = _looked_up(lowering, places, np.rint(entries))
    product = writer.binary("Mul", exponentials, reciprocal)
    return writer.binary("ArithmeticRightShift", product, writer.binary("Sub", thirty, zeros))


def _looked_up(lowering: Lowering, places: Tensor, entries: np.ndarray) -> Tensor:
    """Return entries of a table of 513, and what is between them, as int32."""
    writer = lowering.writer
    table = writer.constant(entries.astype(np.int16))
    wide = writer.op("Table", [places, table], places.shape, INT32)
    # TOSA appends 7 bits to the entries.
    return writer.rescale(wide, Scale.of(1 / _STEPS), INT32)
