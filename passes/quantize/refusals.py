"""Why the weights of a layer are left as they are."""

from collections.abc import Collection

import numpy as np

from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune.candidates import readers


def refusal(graph: Graph, layer: Layer, skip: Collection[str]) -> str:
    """Return why a layer's weights cannot become integers; nothing where they can."""
    if layer.name in skip:
        return "it is named in skip"
    if layer.is_quantized:
        return "it is quantized already"
    if len(readers(graph, str(layer.weight.name))) > 1:
        return f"{layer.weight.name} is read elsewhere too"
    if not layer.weight.values.size or layer.weight.dtype != np.float32:
        return f"its weights are {layer.weight.dtype} {list(layer.weight.shape)}"
    return ""
