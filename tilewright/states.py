"""Which tensors inside a network say what it does, and which constants are trained."""

import numpy as np

from tilewright.graph import Graph, is_constant, static_shape
from tilewright.layers import linear_layers

# Inputs of operators, by place, that hold a bias or a scale.
_VECTORS = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "LayerNormalization": (1, 2),
    "Mul": (0, 1),
}


def internal_states(compressed: Graph, dense: Graph) -> list[str]:
    """Return the names of the tensors to align, in order.

    They are the sums of computed tensors of one shape, which is what residual streams carry, or
    where there are none what linear layers read; and the outputs in floats. Only those that
    both networks compute in the same shape.
    """
    shapes = {n: static_shape(t) for n, t in dense.gs.tensors().items() if not is_constant(t)}
    sums = [
        node.outputs[0]
        for node in compressed.nodes
        if node.op == "Add"
        and len({static_shape(t) for t in (*node.inputs, node.outputs[0])}) == 1
        and not any(is_constant(t) for t in node.inputs)
    ]
    read = [layer.source for layer in linear_layers(compressed)]
    outputs = [t for t in compressed.outputs if np.dtype(t.dtype).kind == "f"]
    both = (t for t in (*(sums or read), *outputs) if shapes.get(t.name) == static_shape(t))
    return list(dict.fromkeys(str(t.name) for t in both))


def supports(graph: Graph) -> dict[str, np.ndarray]:
    """Return where the weights of linear layers are not zero, by the constant's name."""
    return {
        str(layer.weight.name): np.asarray(layer.weight.values != 0)
        for layer in linear_layers(graph)
        if layer.weight.dtype == np.float32
    }


def vectors(graph: Graph) -> list[str]:
    """Return the names of biases, and of the scales and shifts of normalizations."""
    found = [
        tensor
        for node in graph.nodes
        for index, tensor in enumerate(node.inputs)
        if index in _VECTORS.get(node.op, ()) and is_constant(tensor)
    ]
    return list(
        dict.fromkeys(
            str(t.name)
            for t in found
            if t.dtype == np.float32 and t.values.size == max(t.shape, default=0) > 1
        )
    )
