"""Quantize the layers' inputs and weights to 8 bits, with ranges from calibration data."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph, constant
from tilewright.layers import Layer, linear_layers, weighted_layers
from tilewright.opset import with_opset
from tilewright.options import check_name, unusable
from tilewright.passes.quantize.names import free_stem
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Walk

_PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis
_STEPS = 255  # of an activation, from its least value to its greatest
_WEIGHT_STEPS = 127  # of a weight to each side of zero
# Values of one sample that a percentile is taken over: as many as fix it to a step.
_VALUES = 1 << 16


@dataclass(frozen=True)
class Quantize:
    """Put QuantizeLinear and DequantizeLinear around the inputs and weights of every layer.

    Weights become int8, symmetric, with a scale for each output channel; a zero stays zero.
    Activations become uint8 with one scale and zero point a tensor, which siblings share. Their
    range holds all calibration values (`range` "minmax"), or the share `percentile` of them
    without the largest on either side ("percentile"). Zero is always in the range, so that
    padding is exact. With `activations` false only the weights are quantized: what memory holds
    is smaller, the arithmetic stays in floats, and no calibration is needed. Biases and
    everything else stay float32. Layers are Conv, Gemm, MatMul by a constant and, with
    `activations`, ConvTranspose; grouped ones and those named in `skip` are left alone, as are
    those whose weights other nodes read.
    """

    activations: bool = True
    range: str = "minmax"
    percentile: float = 99.99
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "quantize"
    source: ClassVar[str] = (
        'Jacob et al., "Quantization and Training" (2018); Krishnamoorthi (2018), section 3.1'
    )
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_name(self, "range", ("minmax", "percentile"))
        if not 50 < self.percentile <= 100:
            raise unusable(self, "percentile", "above 50 and at most 100, such as 99.99")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Quantize every layer. Raises UnusableInput without calibration data."""
        if self.activations and context.calibration is None:
            raise UnusableInput(
                "quantize needs example inputs to measure the ranges of activations on. Give "
                "--calibration an .npz file with an array for each input."
            )
        edited = with_opset(graph.edit().sorted(), _PER_CHANNEL_OPSET)
        notes: list[Note] = []
        # The weights of a ConvTranspose only stay small where integers multiply them.
        known = weighted_layers(edited) if self.activations else linear_layers(edited)
        layers = [layer for layer in known if self._takes(edited, layer, notes)]
        ranges: dict[str, tuple[float, float]] = {}
        if context.calibration is not None and self.activations:
            ranges = self._ranges(edited, layers, context.calibration)
        quantized: dict[str, gs.Variable] = {}
        for layer in layers:
            source = layer.source
            if source.name in ranges:
                if source.name not in quantized:
                    ends = ranges[source.name]
                    quantized[source.name] = _through_uint8(edited, source, *ends)
                layer.node.inputs[0] = quantized[source.name]
            layer.node.inputs[1] = _int8_weights(edited, layer)
        return Outcome(edited.sorted(), tuple(notes))

    def _takes(self, graph: Graph, layer: Layer, notes: list[Note]) -> bool:
        reason = ""
        if layer.name in self.skip:
            reason = "it is named in skip"
        elif layer.groups > 1:
            reason = "its convolution is grouped"
        elif layer.is_quantized:
            reason = "it is already"
        elif len(layer.weight.outputs) > 1 or any(t is layer.weight for t in graph.outputs):
            reason = f"{layer.weight.name} is read elsewhere too"
        elif not layer.weight.values.size or layer.weight.dtype != np.float32:
            reason = f"its weights are {layer.weight.dtype} {list(layer.weight.shape)}"
        if reason:
            notes.append(Note(layer.name, f"not quantized: {reason}"))
        return not reason

    def _ranges(
        self, graph: Graph, layers: list[Layer], calibration: Calibration
    ) -> dict[str, tuple[float, float]]:
        """Return the range of each tensor that a layer reads."""
        walk = Walk(calibration)
        place = {node.name: index for index, node in enumerate(graph.nodes)}
        ranges: dict[str, tuple[float, float]] = {}
        for layer in layers:
            name = layer.source.name
            if name in ranges:
                continue
            walk.advance(graph, place[layer.name])
            ends = np.array([self._ends(x) for x in walk.values(name) if x.size])
            if self.range == "minmax":
                low, high = ends[:, 0].min(), ends[:, 1].max()
            else:
                low, high = ends.mean(axis=0)
            if not np.isfinite([low, high]).all():
                raise UnusableInput(
                    f'quantize: "{name}", which {layer.name} reads, is NaN or infinite on the '
                    "calibration data. Check the data, and the model under onnxruntime."
                )
            ranges[name] = min(float(low), 0.0), max(float(high), 0.0)
        return ranges

    def _ends(self, x: np.ndarray) -> tuple[float, float]:
        if self.range == "minmax":
            return float(x.min()), float(x.max())
        flat = x.reshape(-1)[:: max(1, x.size // _VALUES)]
        low, high = np.percentile(flat, [100 - self.percentile, self.percentile])
        return float(low), float(high)


def _through_uint8(graph: Graph, tensor: gs.Tensor, low: float, high: float) -> gs.Variable:
    """Append the two nodes that take a tensor to uint8 and back; return what comes out."""
    scale = np.float32((high - low) / _STEPS) or np.float32(1.0)
    zero = np.uint8(np.clip(round(-low / float(scale)), 0, _STEPS))
    stem = free_stem(graph, tensor.name)
    parameters = [
        constant(f"{stem}/scale", np.asarray(scale, np.float32)),
        constant(f"{stem}/zero_point", np.asarray(zero, np.uint8)),
    ]
    shape = tensor.shape
    small = gs.Variable(f"{stem}/uint8", np.dtype(np.uint8), shape)
    back = gs.Variable(f"{stem}/dequantized", np.dtype(np.float32), shape)
    graph.gs.nodes.append(
        gs.Node("QuantizeLinear", f"{stem}/quantize", {}, [tensor, *parameters], [small])
    )
    graph.gs.nodes.append(
        gs.Node("DequantizeLinear", f"{stem}/dequantize", {}, [small, *parameters], [back])
    )
    return back


def _int8_weights(graph: Graph, layer: Layer) -> gs.Variable:
    """Append the node that makes a layer's weights from int8; return what comes out."""
    weight = layer.weight
    axis = layer.output_axis
    others = tuple(a for a in range(weight.values.ndim) if a != axis)
    most = np.abs(weight.values).max(axis=others)
    scales = np.where(most > 0, most / _WEIGHT_STEPS, 1.0).astype(np.float32)
    # A denormal largest weight has no scale of its own; the whole channel is zero then.
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    spread = scales.reshape([-1 if a == axis else 1 for a in range(weight.values.ndim)])
    values = np.clip(np.rint(weight.values / spread), -_WEIGHT_STEPS, _WEIGHT_STEPS)
    stem = free_stem(graph, weight.name)
    inputs = [
        constant(f"{stem}/int8", values.astype(np.int8)),
        constant(f"{stem}/scales", scales),
        constant(f"{stem}/zero_points", np.zeros(len(scales), np.int8)),
    ]
    back = gs.Variable(f"{stem}/dequantized", np.dtype(np.float32), list(weight.shape))
    node = gs.Node("DequantizeLinear", f"{stem}/dequantize", {"axis": axis}, inputs, [back])
    graph.gs.nodes.append(node)
    return back
