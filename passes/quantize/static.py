"""Quantize the layers' inputs and weights to 8 bits, with ranges from calibration data."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph, constant
from tilewright.layer_norms import LAYER_NORM_OPSET, recognize_layer_norms
from tilewright.layers import Layer, linear_layers, weighted_layers
from tilewright.opset import with_opset
from tilewright.options import check_name, unusable
from tilewright.passes.quantize.everywhere import Cut, cuts
from tilewright.passes.quantize.names import free_stem
from tilewright.passes.quantize.ranges import Rule, cut_ranges, finite
from tilewright.passes.quantize.refusals import refusal
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Walk

_PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has an axis
_STEPS = 255  # of an activation, from its least value to its greatest
_WEIGHT_STEPS = 127  # of a weight to each side of zero


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

    With `everywhere` what layers write, sums, pools, softmaxes and the results of activation
    functions are quantized as well, and grouped convolutions: for devices that run networks on
    nothing but integers. Layer normalizations stay in floats, in one piece each.
    """

    activations: bool = True
    everywhere: bool = False
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
        if self.everywhere and not self.activations:
            raise unusable(self, "everywhere", "false where activations is")
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
        if self.everywhere:
            edited = _with_whole_norms(edited)
        notes: list[Note] = []
        # The weights of a ConvTranspose only stay small where integers multiply them.
        known = weighted_layers(edited) if self.activations else linear_layers(edited)
        layers = [layer for layer in known if self._takes(edited, layer, notes)]
        if context.calibration is not None and self.everywhere:
            self._quantize_everywhere(edited, layers, notes, context.calibration)
        elif context.calibration is not None and self.activations:
            self._quantize_inputs(edited, layers, context.calibration)
        for layer in layers:
            layer.node.inputs[1] = _int8_weights(edited, layer)
        return Outcome(edited.sorted(), tuple(notes))

    def _quantize_inputs(
        self, graph: Graph, layers: list[Layer], calibration: Calibration
    ) -> None:
        ranges = self._ranges(graph, layers, calibration)
        quantized: dict[str, gs.Variable] = {}
        for layer in layers:
            source = layer.source
            if source.name not in quantized:
                ends = ranges[source.name]
                quantized[source.name] = _through_uint8(graph, source, *ends)
            layer.node.inputs[0] = quantized[source.name]

    def _quantize_everywhere(
        self, graph: Graph, layers: list[Layer], notes: list[Note], calibration: Calibration
    ) -> None:
        known = {layer.name for layer in layers}
        floats = {layer.name for layer in weighted_layers(graph)} - known
        places = cuts(graph, floats | set(self.skip))
        ranges = cut_ranges(graph, places, self._rule, calibration)
        for cut in places:
            if cut.tensor.name in ranges:
                _cut(graph, cut, *ranges[cut.tensor.name])

    @property
    def _rule(self) -> Rule:
        return Rule(self.range, self.percentile)

    def _takes(self, graph: Graph, layer: Layer, notes: list[Note]) -> bool:
        reason = refusal(graph, layer, self.skip)
        whole = self.everywhere and layer.node.op == "Conv"
        if layer.groups > 1 and not whole and layer.name not in self.skip:
            reason = "its convolution is grouped"
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
            ends = (self._rule.ends(x) for x in walk.values(name) if x.size)
            told = f'"{name}", which {layer.name} reads,'
            ranges[name] = finite(self._rule.over(ends), told)
        return ranges


def _with_whole_norms(graph: Graph) -> Graph:
    """Return the graph with layer normalizations in one piece, which stays in floats."""
    ops = [node.op for node in graph.nodes]
    if [node.op for node in recognize_layer_norms(graph).nodes] == ops:
        return graph
    return recognize_layer_norms(with_opset(graph, LAYER_NORM_OPSET))


def _cut(graph: Graph, cut: Cut, low: float, high: float) -> None:
    """Put integers between a tensor and those that read them."""
    tensor, readers = cut.tensor, cut.readers
    if readers is None:
        # Whoever reads the tensor by its name, outputs and subgraphs too, gets the new one.
        (writer,) = tensor.inputs
        whole = gs.Variable(
            f"{free_stem(graph, tensor.name)}/float", tensor.dtype, tensor.shape
        )
        writer.outputs[next(i for i, t in enumerate(writer.outputs) if t is tensor)] = whole
        back = _through_uint8(graph, whole, low, high)
        back.inputs[0].outputs[0] = tensor
        return
    back = _through_uint8(graph, tensor, low, high)
    for node in readers:
        node.inputs = [back if t is tensor else t for t in node.inputs]


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
