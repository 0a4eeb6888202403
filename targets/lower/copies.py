"""Operators that only move data: Concat, Gather of rows, Pad."""

import math

import numpy as np

from tilewright.graph import is_constant, static_shape
from tilewright.targets.kernels.elementwise import Chain, Source
from tilewright.targets.kernels.lookup import LookupKernel
from tilewright.targets.kernels.pen import dtype_of
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import collapse


def lower_concat(lowering: Lowering, region: Region) -> None:
    """Lower Concat: each input is copied into its part of the output."""
    node = region.anchor
    shape = static_shape(node.outputs[0])
    assert shape is not None
    axis = int(node.attrs["axis"]) % len(shape)
    parts = [(t, static_shape(t)) for t in node.inputs]
    windows = [lowering.window(t) for t, s in parts if s is not None and s[axis]]
    largest = max(windows, key=lambda w: w.size)
    target = lowering.program.tensor(
        node.outputs[0].name,
        shape,
        np.dtype(node.outputs[0].dtype).name,
        largest.order,
        largest.run,
    )
    start = 0
    for window in windows:
        part = target.sliced(axis, start, window.shape[axis])
        copy = Chain((), (Source("operand", 0),))
        lowering.map_call(copy, [window], [part], [node.name])
        start += window.shape[axis]
    lowering.define(node.outputs[0], target)


def lower_gather(lowering: Lowering, region: Region) -> None:
    """Lower Gather on axis 0 of a table: an embedding lookup."""
    node = region.anchor
    table, ids = lowering.window(node.inputs[0]), lowering.window(node.inputs[1])
    if int(node.attrs.get("axis", 0)) % len(table.shape) or table.dtype not in (
        "weights",
        "float32",
    ):
        raise NotLowered("Gather on an inner axis, or of integers")
    dims, ((*_, step),) = collapse(table.shape[1:], [table.strides[1:]])
    if len(dims) > 1 or ids.dtype not in ("int64", "int32", "indices"):
        raise NotLowered("Gather of entries that lie apart")
    shape = static_shape(node.outputs[0])
    assert shape is not None
    target = lowering.program.tensor(node.outputs[0].name, shape, "float32")
    kernel = LookupKernel(
        shape=ids.shape or (1,),
        elements=math.prod(dims),
        entries=table.shape[0],
        row_stride=table.strides[0],
        step=step,
        ids=ids.strides or (0,),
        id_dtype=ids.dtype,
        table_kind=table.dtype,
        target=target.strides[: len(ids.shape)] or (0,),
    )
    lowering.program.call(kernel, [ids, table, target], [node.name])
    lowering.define(node.outputs[0], target)


def lower_pad(lowering: Lowering, region: Region) -> None:
    """Lower Pad by constants: fill, then copy the middle."""
    node = region.anchor
    if node.attrs.get("mode", "constant") != "constant":
        raise NotLowered(f"Pad with mode {node.attrs['mode']}")
    given = node.inputs[1:]
    if not all(is_constant(t) for t in given if t.name) or len(given) > 2:
        raise NotLowered("Pad by computed amounts")
    pads = list(node.attrs["pads"]) if not given else given[0].values.tolist()
    value = node.attrs.get("value", 0.0)
    if len(given) > 1 and given[1].name:
        value = given[1].values.reshape(-1)[0].item()
    window = lowering.window(node.inputs[0])
    if min(pads) < 0:
        raise NotLowered("Pad by negative amounts")
    shape = static_shape(node.outputs[0])
    assert shape is not None
    target = lowering.program.tensor(
        node.outputs[0].name, shape, dtype_of(window.dtype), window.order
    )
    number = Source("number", value=value, dtype=target.dtype)
    lowering.map_call(Chain((), (number,)), [], [target], [node.name])
    middle = target
    for axis, extent in enumerate(window.shape):
        middle = middle.sliced(axis, pads[axis], extent)
    lowering.map_call(Chain((), (Source("operand", 0),)), [window], [middle], [node.name])
    lowering.define(node.outputs[0], target)
