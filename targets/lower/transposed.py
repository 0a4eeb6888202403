"""ConvTranspose as one plain convolution a phase of the output, then an interleaving copy.

Output row o takes input row i through tap k where o = i * stride + k - pad. Rows with equal
(o + pad) % stride use the same taps, so each phase is a convolution of stride 1.
"""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.targets.kernels.elementwise import Chain, Source, Step
from tilewright.targets.kernels.planes import PlaneShape
from tilewright.targets.lower.choose import choose
from tilewright.targets.lower.integer import call_integers
from tilewright.targets.lower.layer import call_tiles
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.planes import pad_planes
from tilewright.targets.lower.problem import Problem, along
from tilewright.targets.lower.quantized import IntegerLayer, lowered_layer
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import Window


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: row q of a phase is output (first + q) * stride + phase - pad."""

    stride: int
    kernel: int
    pad: int
    out: int

    @property
    def first(self) -> int:
        return self.pad // self.stride

    @property
    def count(self) -> int:
        return (self.pad + self.out - 1) // self.stride - self.first + 1

    def taps(self, phase: int) -> list[int]:
        """Taps of a phase, in the order in which a plain window meets them."""
        return list(range(phase, self.kernel, self.stride))[::-1]


def lower_conv_transpose(lowering: Lowering, region: Region) -> None:
    """Lower an ungrouped, undilated ConvTranspose over two axes."""
    node = region.anchor
    layer = lowered_layer(node)
    integers = lowering.integers(node)
    out = static_shape(node.outputs[0])
    assert out is not None
    dilated = set(node.attrs.get("dilations", [1, 1])) != {1}
    if layer is None:
        raise NotLowered("ConvTranspose without constant weights of its own")
    if layer.groups > 1 or len(out) != 4 or dilated:
        raise NotLowered("ConvTranspose that is grouped, dilated or not over two axes")
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotLowered("ConvTranspose with auto_pad")
    if "output_shape" in node.attrs:
        raise NotLowered("ConvTranspose whose pads follow from output_shape")
    strides = node.attrs.get("strides", [1, 1])
    pads = node.attrs.get("pads", [0] * 4)
    axes = [
        _Axis(s, k, p, o)
        for s, k, p, o in zip(strides, layer.weight.shape[2:], pads[:2], out[2:], strict=True)
    ]
    if any(a.kernel < a.stride for a in axes):
        raise NotLowered("ConvTranspose that leaves gaps")
    rows, columns = axes
    pitch = columns.count - 1 + max(len(columns.taps(p)) for p in range(columns.stride))
    matrix = layer.matrix() if integers is None else integers.weights.matrix
    weights = matrix.reshape(out[1], -1, *layer.weight.shape[2:])
    phases = lowering.program.tensor(
        f"{node.name}.phases",
        (out[0], out[1], rows.stride, columns.stride, rows.count, pitch),
        "float32",
    )
    for py in range(rows.stride):
        for px in range(columns.stride):
            target = phases.sliced(2, py, 1).sliced(3, px, 1)
            plain = target.reshaped((out[0], out[1], rows.count, pitch))
            assert plain is not None
            _phase(lowering, region, integers, weights, axes, (py, px), plain)
    _interleave(lowering, node, axes, phases.sliced(5, 0, columns.count), out)


def _phase(
    lowering: Lowering,
    region: Region,
    integers: IntegerLayer | None,
    weights: np.ndarray,
    axes: list[_Axis],
    phase: tuple[int, int],
    target: Window,
) -> None:
    """Compute one phase into `target`, whose rows are as far apart as those of the input.

    `weights` are (outputs, inputs, rows, columns).
    """
    node = region.anchor
    window = lowering.window(node.inputs[0] if integers is None else integers.source)
    taps = [axis.taps(p) for axis, p in zip(axes, phase, strict=True)]
    before = [len(t) - 1 - axis.first for t, axis in zip(taps, axes, strict=True)]
    for place, pad in enumerate(before):
        if pad < 0:
            window = window.sliced(2 + place, -pad, window.shape[2 + place] + pad)
    shape = PlaneShape(
        height=window.shape[2],
        width=window.shape[3],
        top=max(before[0], 0),
        left=max(before[1], 0),
        out_height=axes[0].count,
        out_width=axes[1].count,
        kernel=(len(taps[0]), len(taps[1])),
        stride=(1, 1),
        dilation=(1, 1),
    )
    edge = 0 if integers is None else integers.zero
    planes, offsets = pad_planes(lowering, node.name, window, shape, edge)
    matrix = weights[:, :, taps[0]][:, :, :, taps[1]].reshape(len(weights), -1)
    target = target.sliced(3, 0, shape.out_width)
    steps: tuple[int, ...] = (shape.phase[1], 1)
    extents: tuple[int, ...] = (shape.out_height, shape.out_width)
    if target.strides[2] == shape.phase[1]:
        # One run of positions, with what is between the rows: lanes are rarely left idle.
        steps, extents = (1,), ((shape.out_height - 1) * shape.phase[1] + shape.out_width,)
        whole = (*target.shape[:2], *extents)
        target = Window(target.buffer, whole, (*target.strides[:2], 1), target.offset)
    source = Window(
        planes.buffer, (planes.shape[0], *extents), (planes.strides[0], *steps), planes.offset
    )
    scales = None if integers is None else integers.weights.scales * np.float32(integers.scale)
    problem = Problem(matrix, source, offsets, 1, scales)
    chain, operands = _scaled(lowering, node, scales, target.shape)
    if integers is not None:
        call_integers(lowering, region, integers, problem, chain, operands, [target])
        return
    choice = choose(lowering, region, problem, target.shape, lanes="positions")
    call_tiles(lowering, region, problem, choice, chain, operands, [target])


def _scaled(
    lowering: Lowering, node: gs.Node, scales: np.ndarray | None, shape: tuple[int, ...]
) -> tuple[Chain, list[Window]]:
    """Return the chain of a phase and its operands: what sums are multiplied by, the bias."""
    steps: list[Step] = []
    operands: list[Window] = []

    def step(op: str, vector: Window) -> None:
        before = Source("step", len(steps) - 1) if steps else Source("result")
        steps.append(Step(op, (before, Source("operand", len(operands)))))
        operands.append(along(vector, shape, 1))

    if scales is not None:
        step("Mul", lowering.program.constant(f"{node.name}.scales", scales))
    if len(node.inputs) > 2 and node.inputs[2].name:
        step("Add", lowering.window(node.inputs[2]))
    last = Source("step", len(steps) - 1) if steps else Source("result")
    return Chain(tuple(steps), (last,)), operands


def _interleave(
    lowering: Lowering,
    node: gs.Node,
    axes: list[_Axis],
    phases: Window,
    out: tuple[int, ...],
) -> None:
    rows, columns = axes
    mixed = phases.transposed((0, 1, 4, 2, 5, 3))
    full = lowering.moved(mixed, tuple(range(6)), node.name)
    shown = full.reshaped(
        (out[0], out[1], rows.count * rows.stride, columns.count * columns.stride)
    )
    assert shown is not None
    for place, axis in enumerate(axes):
        shown = shown.sliced(2 + place, axis.pad - axis.first * axis.stride, axis.out)
    lowering.define(node.outputs[0], shown)
