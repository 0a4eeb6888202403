"""Activations: what elementwise operators make of a layer's outputs."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from tilewright.graph import Graph, is_constant
from tilewright.layers import Layer
from tilewright.oracle import outputs_of, session
from tilewright.passes.prune.bias import bias_of
from tilewright.segments import part_of

# Operators that take each number by itself; the first ones bend nothing with single numbers.
_STRAIGHT = frozenset({"Add", "Sub", "Mul", "Div", "Neg"})
_BENT = frozenset(
    {
        "Abs",
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
_MOST_NODES = 12  # of one activation, such as GELU by Tanh


class Activation(NamedTuple):
    """Elementwise operators behind a layer's output, as a model of one input."""

    loaded: ort.InferenceSession
    read: str

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return what becomes of (outputs, columns)."""
        (found,) = outputs_of(self.loaded, {self.read: x}).values()
        # A single number of many axes gives the result as many.
        return found.reshape(x.shape)


def activation_behind(layer: Layer, graph: Graph, uses: Mapping[str, int]) -> Activation | None:
    """Return what alone reads a layer's output, with its bias, and bends it; or None.

    None, too, where what is added to the output is no bias of its own. `uses` is `use_counts`.
    """
    bias = bias_of(layer, uses)
    scaled = any(layer.node.attrs.get(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if scaled or (bias is None and any(t.name for t in layer.node.inputs[2:])):
        return None
    inside = bias is None or any(t is bias for t in layer.node.inputs)
    start = layer.node.outputs[0] if inside else layer.node.outputs[0].outputs[0].outputs[0]
    tensors, nodes, read = [start], list[gs.Node](), Counter[str]()
    while len(nodes) < _MOST_NODES:
        leaving = [t for t in tensors if uses.get(t.name, 0) > read[t.name]]
        bent = any(node.op in _BENT for node in nodes)
        if bent and len(leaving) == 1 and leaving[0] is not start:
            kinds = {start.name: (np.dtype(np.float32), None)}
            model = part_of(graph, nodes, kinds, [leaving[0].name])
            return Activation(session(model, threads=1), start.name)
        names = {t.name for t in tensors}
        behind = (node for tensor in tensors for node in tensor.outputs)
        node = next((n for n in behind if _joins(n, names)), None)
        if node is None:
            return None
        nodes.append(node)
        tensors.append(node.outputs[0])
        read.update(t.name for t in node.inputs)
    return None


def _joins(node: gs.Node, names: set[str]) -> bool:
    """Say whether a node reads nothing but these tensors and single numbers."""
    if node.op not in _STRAIGHT | _BENT or len(node.outputs) != 1:
        return False
    fresh = node.outputs[0].name not in names
    return fresh and all(
        t.values.size == 1 if is_constant(t) else t.name in names or not t.name
        for t in node.inputs
    )
