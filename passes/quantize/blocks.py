"""Weights of 4 bits in blocks, for layers that are bound by memory: one token at a time."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.nbits import block_node, declare, in_blocks
from tilewright.options import unusable
from tilewright.passes.quantize.names import free_stem
from tilewright.passes.quantize.refusals import refusal
from tilewright.protocol import Context, Note, Outcome

_BLOCKS = (16, 32, 64, 128, 256)  # that onnxruntime takes


@dataclass(frozen=True)
class QuantizeBlocks:
    """Make the weights of MatMul and Gemm 4-bit integers; `block` neighbours share a scale.

    Activations and arithmetic stay in floats, and no calibration is needed. A layer becomes
    onnxruntime's operator MatMulNBits. Convolutions and layers named in `skip` are left alone,
    as are weights that other nodes read too.
    """

    block: int = 32
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "quantize-blocks"
    source: ClassVar[str] = "round to nearest; the operator is onnxruntime's MatMulNBits"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        if self.block not in _BLOCKS:
            raise unusable(self, "block", f"one of {', '.join(map(str, _BLOCKS))}")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Replace the layers by MatMulNBits."""
        edited = graph.edit().sorted()
        notes: list[Note] = []
        for layer in list(linear_layers(edited)):
            reason = self._refusal(edited, layer)
            if reason:
                notes.append(Note(layer.name, f"not quantized: {reason}"))
                continue
            self._replace(edited, layer)
        declare(edited)
        return Outcome(edited.sorted(), tuple(notes))

    def _replace(self, graph: Graph, layer: Layer) -> None:
        node = layer.node
        stem = free_stem(graph, layer.weight.name)
        source, out = node.inputs[0], node.outputs[0]
        bias = [tensor for tensor in node.inputs[2:] if tensor.name]
        node.inputs.clear()
        node.outputs.clear()
        graph.gs.nodes.remove(node)
        product = out
        if bias:
            product = gs.Variable(f"{stem}/product", out.dtype, out.shape)
            add = gs.Node("Add", f"{stem}/add", {}, [product, *bias], [out])
            graph.gs.nodes.append(add)
        weights = in_blocks(layer.matrix(), self.block)
        graph.gs.nodes.append(block_node(layer.name, stem, source, weights, product))

    def _refusal(self, graph: Graph, layer: Layer) -> str:
        if layer.node.op == "Conv":
            return "it is a convolution"
        if any(layer.node.attrs.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta")):
            return "its Gemm has factors"
        return refusal(graph, layer, self.skip)
