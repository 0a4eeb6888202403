"""One layer in the terms of a tile kernel: its activations, its positions, its chain.

What the kernels on floats (layer.py) and on integers (integer.py) have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.elementwise import Chain
from tilewright.targets.kernels.tail import Tail
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.planes import pad_planes, plane_shape
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import Window, collapse


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer in the kernel's terms.

    `source` shows the activations with axes (positions...), at the place of input 0;
    `offsets` (inputs,) leads from there to each column's activation. `channel` is the axis of
    the outputs in the result's shape, the other axes are its positions. Where the matrix is
    int8, results are to be multiplied by `scales` (outputs,).
    """

    matrix: np.ndarray
    source: Window
    offsets: np.ndarray
    channel: int
    scales: np.ndarray | None = None

    def in_floats(self) -> "Problem":
        """Return the problem with its scales in its weights."""
        if self.scales is None:
            return self
        matrix = self.matrix.astype(np.float32) * self.scales[:, None]
        return replace(self, matrix=matrix, scales=None)


@dataclass(frozen=True)
class Places:
    """A layer's positions as kernels loop over them, and how its tensors are walked there.

    There are `images` x `height` x `width` positions; `source` walks the activations.
    """

    images: int
    height: int
    width: int
    source: Strides
    tail: Tail

    @property
    def count(self) -> int:
        """Positions in all."""
        return self.images * self.height * self.width


def problem_of(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, matrix: np.ndarray, edge: float = 0
) -> Problem:
    """Return the problem of a layer that multiplies `tensor`; `edge` is what padding holds."""
    window = lowering.window(tensor)
    if node.op != "Conv":
        if len(window.shape) < 2:
            raise NotLowered("MatMul of a vector")
        last = len(window.shape) - 1
        return _flat_problem(window, last, matrix, last)
    shape = plane_shape(node)
    if shape is None:
        return _flat_problem(window, 1, matrix, 1)
    padded, offsets = pad_planes(lowering, node.name, window, shape, edge)
    out = static_shape(node.outputs[0])
    assert out is not None, f"{node.name} has no static shape"
    columns = shape.phase[1]
    steps = (columns, 1) if len(out) == 4 else (1,)
    source = Window(
        padded.buffer, (out[0], *out[2:]), (padded.strides[0], *steps), padded.offset
    )
    return Problem(matrix, source, offsets, 1)


def along_positions(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, problem: Problem
) -> Problem:
    """Return the problem with the activations' last positions next to each other."""
    if _last_step(problem.source) == 1:
        return problem
    return _repacked(lowering, node, tensor, problem)


def places_of(
    node: gs.Node,
    problem: Problem,
    chain: Chain,
    operands: Sequence[Window],
    outputs: Sequence[Window],
) -> Places:
    """Merge position axes that a problem's source and a chain's windows walk evenly.

    The windows have the result's shape. Raises NotLowered where more than three axes are left.
    """
    windows = [*operands, *outputs]
    channel, shape = problem.channel, windows[0].shape
    axes = [a for a in range(len(shape)) if a != channel]
    walks = [problem.source.strides, *(tuple(w.strides[a] for a in axes) for w in windows)]
    dims, rows = collapse([shape[a] for a in axes], walks)
    if len(dims) > 3:
        raise NotLowered(f"{node.op} over {len(dims)} uneven position axes")
    lead = (0,) * (3 - len(dims))
    (b, y, x), *ends = [lead + row for row in rows]
    images, height, width = (1,) * len(lead) + dims
    each = [
        Strides(b, w.strides[channel], y, x) for (b, y, x), w in zip(ends, windows, strict=True)
    ]
    tail = Tail.of(chain, len(operands), each, [w.dtype for w in windows])
    return Places(images, height, width, Strides(b, 0, y, x), tail)


def chain_behind(
    lowering: Lowering, region: Region, problem: Problem, order: Sequence[int], run: int
) -> tuple[Chain, list[Window], list[Window]]:
    """Build the chain behind a layer, its scales and its bias first: see `chain_of`."""
    node, channel = region.anchor, problem.channel
    result = node.outputs[0]
    shape = static_shape(result)
    assert shape is not None, f"{result.name} has no static shape"
    return lowering.chain_of(
        region,
        result,
        order,
        run,
        bias=_bias_window(lowering, node, shape, channel),
        scale=_scale_window(lowering, node, problem.scales, shape, channel),
    )


def positions_order(node: gs.Node, shape: Sequence[int], channel: int) -> tuple[list[int], int]:
    """Return the axes from the slowest to the fastest, and how many positions come last.

    Lanes run along the last axis of positions that has more than one.
    """
    axes = [a for a in range(len(shape)) if a != channel]
    if node.op == "Conv":
        return sorted([*axes, channel]), len(axes) - 1
    last = max((a for a in axes if shape[a] > 1), default=axes[-1])
    return [*(a for a in axes if a != last), channel, last], 1


def _last_step(source: Window) -> int:
    real = [s for n, s in zip(source.shape, source.strides, strict=True) if n > 1]
    return real[-1] if real else 1


def _repacked(
    lowering: Lowering, node: gs.Node, tensor: gs.Tensor, problem: Problem
) -> Problem:
    """Copy activations of (positions..., inputs) to (batch..., inputs, positions).

    Later readers of the tensor, the residual for one, take the copy too.
    """
    window = lowering.window(tensor)
    rank = len(window.shape)
    channel = 1 if node.op == "Conv" else rank - 1
    order, run = positions_order(node, window.shape, channel)
    moved = lowering.moved(window, order, tensor.name, run)
    lowering.define(tensor, moved)
    flat = _flat_problem(moved, channel, problem.matrix, problem.channel)
    return replace(flat, scales=problem.scales)


def _flat_problem(window: Window, axis: int, matrix: np.ndarray, channel: int) -> Problem:
    others = [a for a in range(len(window.shape)) if a != axis]
    source = Window(
        window.buffer,
        tuple(window.shape[a] for a in others),
        tuple(window.strides[a] for a in others),
        window.offset,
    )
    offsets = np.arange(matrix.shape[1], dtype=np.int32) * window.strides[axis]
    return Problem(matrix, source, offsets, channel)


def _scale_window(
    lowering: Lowering,
    node: gs.Node,
    scales: np.ndarray | None,
    shape: tuple[int, ...],
    channel: int,
) -> Window | None:
    """Return what results are multiplied by, in the result's shape, or None."""
    if scales is None:
        return None
    window = lowering.program.constant(f"{node.name}.scales", scales.astype(np.float32))
    return along(window, shape, channel)


def _bias_window(
    lowering: Lowering, node: gs.Node, shape: tuple[int, ...], channel: int
) -> Window | None:
    """Return a layer's bias, scaled and in the result's shape, or None where it has none."""
    if node.op not in ("Conv", "Gemm") or len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    tensor = node.inputs[2]
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    if beta != 1.0:
        if not isinstance(tensor, gs.Constant):
            raise NotLowered("Gemm with beta and a bias that is computed")
        window = lowering.program.constant(tensor.name, tensor.values * np.float32(beta))
    else:
        window = lowering.window(tensor)
    if node.op == "Conv":
        return along(window, shape, channel)
    return window.broadcast(shape)


def along(window: Window, shape: tuple[int, ...], axis: int) -> Window:
    """Show a vector along one axis of a shape, the same for all others."""
    strides = tuple(window.strides[0] if a == axis else 0 for a in range(len(shape)))
    return Window(window.buffer, shape, strides, window.offset)
