"""Activations: what elementwise operators make of a layer's outputs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.oracle import outputs_of, session
from tilewright.passes.prune.bias import bias_of
from tilewright.pointwise import BENT, functions_of
from tilewright.segments import part_of


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
    for nodes, result in functions_of(start, uses):
        inner = sum(tensor is start for node in nodes for tensor in node.inputs)
        if uses.get(start.name, 0) == inner and any(node.op in BENT for node in nodes):
            kinds = {start.name: (np.dtype(np.float32), None)}
            model = part_of(graph, list(nodes), kinds, [result.name])
            return Activation(session(model, threads=1), start.name)
    return None
