"""The anchors: which operator is lowered by what, and those that need no file of their own."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.layers import linear_layer
from tilewright.targets.kernels.elementwise import Chain, Source
from tilewright.targets.kernels.lookup import LookupKernel, ResizeKernel
from tilewright.targets.kernels.pen import dtype_of
from tilewright.targets.kernels.planes import PlaneKernel
from tilewright.targets.kernels.product import ProductKernel
from tilewright.targets.kernels.reductions import (
    LayerNormKernel,
    LogSoftmaxKernel,
    ReduceKernel,
    SoftmaxKernel,
)
from tilewright.targets.kernels.rows import RowShape
from tilewright.targets.lower.layer import (
    image_strides,
    lower_layer,
    plane_shape,
)
from tilewright.targets.lower.lowering import Lower, Lowering, NotLowered
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.transposed import lower_conv_transpose
from tilewright.targets.lower.window import Window, collapse


def lower_conv(lowering: Lowering, region: Region) -> None:
    """Lower a convolution: dense ones to the tile kernel, depthwise ones plane by plane."""
    layer = linear_layer(region.anchor)
    if layer is not None and layer.is_depthwise:
        weight = lowering.program.constant(f"{layer.name}.taps", layer.weight.values)
        _planes(lowering, region, "conv", weight, layer.weight.shape[0] // layer.groups)
    else:
        lower_layer(lowering, region)


def lower_matmul(lowering: Lowering, region: Region) -> None:
    """Lower MatMul: by a constant matrix to the tile kernel, else as a product."""
    if linear_layer(region.anchor) is not None:
        lower_layer(lowering, region)
    else:
        _product(lowering, region)


def lower_pool(lowering: Lowering, region: Region) -> None:
    """Lower MaxPool and AveragePool."""
    node = region.anchor
    if len([t for t in node.outputs if t.name]) > 1:
        raise NotLowered(f"{node.op} with indices")
    op = "max" if node.op == "MaxPool" else "average"
    _planes(lowering, region, op, None, 1)


def lower_reduce(lowering: Lowering, region: Region) -> None:
    """Lower a reduction over any axes; a chain may follow."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    axes = _reduced_axes(node, rank)
    shape = static_shape(node.outputs[0])
    assert shape is not None
    if not axes or shape == window.shape:
        raise NotLowered(f"{node.op} that reduces nothing")
    kept = [a for a in range(rank) if a not in axes]
    # The result in the source's axes: extent 1 where reduced.
    wide = tuple(1 if a in axes else n for a, n in enumerate(window.shape))
    order = [a for a in window.order if a in kept] if len(shape) == len(kept) else window.order
    if len(shape) != rank:
        places = {a: i for i, a in enumerate(kept)}
        order = tuple(places[a] for a in order)
    chain, operands, outputs = lowering.chain_of(region, node.outputs[0], order)
    if len(outputs) != 1:
        raise NotLowered(f"{node.op} whose parts are read by others")
    shown = [_with_axes(w, wide, kept) for w in (*operands, *outputs)]
    rows, operand_rows = _rows(window, shown[-1], axes, shown[:-1])
    kernel = ReduceKernel(
        op="ReduceMean" if node.op == "GlobalAveragePool" else node.op,
        rows=rows,
        chain=chain,
        operands=operand_rows,
        operand_dtypes=tuple(w.dtype for w in operands),
        target_dtype=outputs[0].dtype,
    )
    lowering.program.call(kernel, [window, *outputs, *operands], [n.name for n in region.nodes])


def lower_softmax(lowering: Lowering, region: Region) -> None:
    """Lower Softmax and LogSoftmax along one axis (or, before opset 13, the last ones)."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    if lowering.graph.opset >= 13:
        axes = [int(node.attrs.get("axis", -1)) % rank]
    else:
        axes = list(range(int(node.attrs.get("axis", 1)) % rank, rank))
    target = lowering.program.tensor(
        node.outputs[0].name, window.shape, "float32", window.order, window.run
    )
    rows, _ = _rows(window, target, axes, [])
    kernel = SoftmaxKernel(rows) if node.op == "Softmax" else LogSoftmaxKernel(rows)
    lowering.program.call(kernel, [window, target], [node.name])
    lowering.define(node.outputs[0], target)


def lower_layer_norm(lowering: Lowering, region: Region) -> None:
    """Lower LayerNormalization over the last axes."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    rank = len(window.shape)
    first = int(node.attrs.get("axis", -1)) % rank
    if any(t.name and t.outputs for t in node.outputs[1:]):
        raise NotLowered("LayerNormalization whose mean or deviation is read")
    if not all(is_constant(t) for t in node.inputs[1:] if t.name):
        raise NotLowered("LayerNormalization with a computed scale or bias")
    target = lowering.program.tensor(
        node.outputs[0].name, window.shape, "float32", window.order, window.run
    )
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    parameters = [
        lowering.window(t).broadcast(window.shape) for t in node.inputs[1 : 2 + has_bias]
    ]
    rows, walks = _rows(window, target, list(range(first, rank)), parameters, reduced=True)
    if len(set(walks)) != 1:
        raise NotLowered("LayerNormalization whose scale and bias lie differently")
    kernel = LayerNormKernel(
        rows,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),
        has_bias=has_bias,
        parameters=walks[0],
    )
    lowering.program.call(kernel, [window, target, *parameters], [node.name])
    lowering.define(node.outputs[0], target)


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


def lower_resize(lowering: Lowering, region: Region) -> None:
    """Lower Resize of the last two axes: nearest or linear."""
    node = region.anchor
    window = lowering.window(node.inputs[0])
    shape = static_shape(node.outputs[0])
    assert shape is not None
    mode = node.attrs.get("mode", "nearest")
    rank = len(shape)
    same = rank >= 3 and shape[: rank - 2] == window.shape[: rank - 2]
    if mode not in ("nearest", "linear") or not same or node.attrs.get("antialias", 0):
        raise NotLowered(f"Resize {mode} of these axes")
    tables = [_resize_table(node, a, window.shape[a], shape[a]) for a in (rank - 2, rank - 1)]
    target = lowering.program.tensor(node.outputs[0].name, shape, "float32")
    name = node.name
    constants = [
        lowering.program.constant(f"{name}.rows", tables[0][0]),
        lowering.program.constant(f"{name}.columns", tables[1][0]),
        lowering.program.constant(f"{name}.row_shares", tables[0][1]),
        lowering.program.constant(f"{name}.column_shares", tables[1][1]),
    ]
    kernel = ResizeKernel(
        planes=shape[:-2],
        out_height=shape[-2],
        out_width=shape[-1],
        taps=tables[0][0].shape[1],
        source=window.strides,
        target=target.strides,
    )
    lowering.program.call(kernel, [window, target, *constants], [name])
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


ANCHORS: dict[str, Lower] = {
    "Conv": lower_conv,
    "Gemm": lower_layer,
    "MatMul": lower_matmul,
    "ConvTranspose": lower_conv_transpose,
    "MaxPool": lower_pool,
    "AveragePool": lower_pool,
    "GlobalAveragePool": lower_reduce,
    "Softmax": lower_softmax,
    "LogSoftmax": lower_softmax,
    "LayerNormalization": lower_layer_norm,
    "Concat": lower_concat,
    "Gather": lower_gather,
    "Resize": lower_resize,
    "Pad": lower_pad,
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"),
        lower_reduce,
    ),
}


def _planes(
    lowering: Lowering, region: Region, op: str, weight: Window | None, multiplier: int
) -> None:
    node = region.anchor
    window = lowering.window(node.inputs[0])
    plane = plane_shape(node)
    out = static_shape(node.outputs[0])
    assert out is not None
    if plane is None:
        raise NotLowered(f"{node.op} with a window of one place")
    bias = None
    if op == "conv" and len(node.inputs) > 2 and node.inputs[2].name:
        own = lowering.window(node.inputs[2])
        strides = tuple(own.strides[0] if a == 1 else 0 for a in range(len(out)))
        bias = Window(own.buffer, out, strides, own.offset)
    counts = _window_counts(node, plane) if op == "average" else None
    chain, operands, outputs = lowering.chain_of(
        region, node.outputs[0], tuple(range(len(out))), len(out) - 2, bias
    )
    fixed = [w for w in (weight,) if w is not None]
    if counts is not None:
        fixed.append(lowering.program.constant(f"{node.name}.shares", counts))
    kernel = PlaneKernel(
        op=op,
        images=out[0],
        channels=out[1],
        shape=plane,
        source=image_strides(window),
        chain=chain,
        operands=tuple(image_strides(w) for w in operands),
        operand_dtypes=tuple(w.dtype for w in operands),
        outputs=tuple(image_strides(w) for w in outputs),
        output_dtypes=tuple(w.dtype for w in outputs),
        counted=counts is not None,
        multiplier=multiplier,
    )
    lowering.program.call(
        kernel, [window, *fixed, *operands, *outputs], [n.name for n in region.nodes]
    )


def _window_counts(node: gs.Node, plane: object) -> np.ndarray | None:
    """Return 1 / (inputs under each window), or None where every window is full."""
    from tilewright.targets.kernels.planes import PlaneShape

    assert isinstance(plane, PlaneShape)
    if node.attrs.get("count_include_pad", 0) and not node.attrs.get("ceil_mode", 0):
        return None
    axes = []
    for extent, before, out, kernel, stride, dilation in (
        (plane.height, plane.top, plane.out_height, *_axis(plane, 0)),
        (plane.width, plane.left, plane.out_width, *_axis(plane, 1)),
    ):
        starts = np.arange(out)[:, None] * stride - before
        places = starts + np.arange(kernel)[None, :] * dilation
        axes.append(((places >= 0) & (places < extent)).sum(axis=1))
    counts = np.outer(axes[0], axes[1])
    if not counts.all():
        raise NotLowered("AveragePool with a window that holds padding only")
    if (counts == plane.kernel[0] * plane.kernel[1]).all():
        return None
    if node.attrs.get("count_include_pad", 0):
        raise NotLowered("AveragePool that counts padding in ceil mode")
    return (1.0 / counts).astype(np.float32)


def _axis(plane: object, axis: int) -> tuple[int, int, int]:
    kernel, stride, dilation = (getattr(plane, k) for k in ("kernel", "stride", "dilation"))
    return kernel[axis], stride[axis], dilation[axis]


def _product(lowering: Lowering, region: Region) -> None:
    node = region.anchor
    a, b = (lowering.window(t) for t in node.inputs)
    shape = static_shape(node.outputs[0])
    assert shape is not None
    if len(a.shape) < 2 or len(b.shape) < 2 or a.dtype != "float32" or b.dtype != "float32":
        raise NotLowered("MatMul of vectors, or of a constant from the left")
    batch = shape[:-2]
    a = a.broadcast((*batch, *a.shape[-2:]))
    b = b.broadcast((*batch, *b.shape[-2:]))
    rank = len(shape)
    # Lanes run along rows where the left operand allows it: a softmax behind is then vertical.
    along_rows = a.strides[-2] == 1 or (b.strides[-1] != 1 and shape[-2] > shape[-1])
    if shape[-2] == 1:
        along_rows = False
    lane_axis, other_axis = (rank - 2, rank - 1) if along_rows else (rank - 1, rank - 2)
    order = [*range(rank - 2), other_axis, lane_axis]
    chain, operands, outputs = lowering.chain_of(region, node.outputs[0], order, 1)
    scalars = b if along_rows else a
    vectors = a if along_rows else b
    depth = a.shape[-1]
    scalar_walk = (scalars.strides[-1], scalars.strides[-2])
    vector_walk = (vectors.strides[-2], vectors.strides[-1])
    if not along_rows:
        scalar_walk, vector_walk = scalar_walk[::-1], vector_walk[::-1]
    windows = [*operands, *outputs]
    dims, rows = collapse(
        batch,
        [w.strides[: rank - 2] for w in (scalars, vectors, *windows)],
    )
    count = len(operands)
    ends = [(w.strides[other_axis], w.strides[lane_axis]) for w in windows]
    kernel = ProductKernel(
        batch=dims,
        rows=shape[other_axis],
        columns=shape[lane_axis],
        depth=depth,
        scalars=(*rows[0], *scalar_walk),
        vectors=(*rows[1], *vector_walk),
        chain=chain,
        operands=tuple((*r, *e) for r, e in zip(rows[2 : 2 + count], ends, strict=False)),
        operand_dtypes=tuple(w.dtype for w in operands),
        outputs=tuple((*r, *e) for r, e in zip(rows[2 + count :], ends[count:], strict=True)),
        output_dtypes=tuple(w.dtype for w in outputs),
    )
    lowering.program.call(
        kernel, [scalars, vectors, *operands, *outputs], [n.name for n in region.nodes]
    )


def _rows(
    source: Window,
    target: Window,
    axes: list[int],
    others: list[Window],
    reduced: bool = False,
) -> tuple[RowShape, tuple[tuple[int, ...], ...]]:
    """Arrange kept and reduced axes for a row kernel.

    `target` and `others` have the source's rank. Others are walked along the kept axes, or with
    `reduced` along the reduced ones. Lanes take the axis that is contiguous in memory.
    """
    order = [a for a in source.order if source.shape[a] > 1]
    kept = [a for a in order if a not in axes]
    inner = [a for a in order if a in axes]
    vertical = bool(kept) and (not order or order[-1] in kept)
    if vertical and target.strides[kept[-1]] != 1:
        vertical = False
    windows = [source, target, *others]

    def part(chosen: list[int]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        shape = [source.shape[a] for a in chosen]
        return collapse(shape, [[w.strides[a] for a in chosen] for w in windows])

    (outer_dims, outer_steps), (inner_dims, inner_steps) = part(kept), part(inner)
    shape = RowShape(
        kept=outer_dims,
        reduced=inner_dims,
        source=(*outer_steps[0], *inner_steps[0]),
        target=(*outer_steps[1], *inner_steps[1]),
        vertical=vertical and source.strides[kept[-1]] == 1,
    )
    walks = (inner_steps if reduced else outer_steps)[2:]
    return shape, tuple(walks)


def _with_axes(window: Window, wide: tuple[int, ...], kept: list[int]) -> Window:
    """Show a reduction's result in the source's axes."""
    if len(window.shape) == len(wide):
        return window
    strides = [0] * len(wide)
    for axis, stride in zip(kept, window.strides, strict=True):
        strides[axis] = stride
    return replace(window, shape=wide, strides=tuple(strides))


def _reduced_axes(node: gs.Node, rank: int) -> list[int]:
    if node.op == "GlobalAveragePool":
        return list(range(2, rank))
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        if not is_constant(node.inputs[1]):
            raise NotLowered(f"{node.op} over computed axes")
        axes = node.inputs[1].values.tolist()
    if not axes:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in axes]


def _resize_table(
    node: gs.Node, axis: int, extent: int, out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return source places (out, taps) and their shares, as the ONNX Resize formulas say."""
    how = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    # In float32, as onnxruntime does: which pixel is nearest hangs on the last bit.
    scale = np.float32(out / extent)
    if scales is not None and scales.name and is_constant(scales) and scales.values.size:
        scale = np.float32(scales.values[axis])
    x = np.arange(out, dtype=np.float32)
    if how == "asymmetric":
        at = x / scale
    elif how == "align_corners":
        at = x * np.float32(extent - 1) / np.float32(max(out - 1, 1))
    elif how == "half_pixel" or (how == "pytorch_half_pixel" and out > 1):
        at = (x + np.float32(0.5)) / scale - np.float32(0.5)
    elif how == "pytorch_half_pixel":
        at = np.zeros(out)
    else:
        raise NotLowered(f"Resize with {how}")
    if node.attrs.get("mode", "nearest") == "nearest":
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "floor": np.floor,
            "ceil": np.ceil,
            "round_prefer_floor": lambda v: np.ceil(v - 0.5),
            "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        }
        rounding = ways[node.attrs.get("nearest_mode", "round_prefer_floor")]
        places = np.clip(rounding(at), 0, extent - 1).astype(np.int32)
        return places[:, None], np.ones((out, 1), np.float32)
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    places = np.stack([low, low + 1], axis=1)
    shares = np.stack([1 - share, share], axis=1)
    return np.clip(places, 0, extent - 1).astype(np.int32), shares
