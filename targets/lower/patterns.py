"""Quantizers where kernels can take them in."""

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant
from tilewright.targets.lower.quantized import is_per_tensor

_VIEWS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def quantize_before_views(graph: Graph) -> Graph:
    """Return the graph with each QuantizeLinear in front of what only shows a tensor otherwise.

    There it follows the kernel that computes the tensor. The result is for lowering only.
    """
    edited = graph.edit()
    kept = {t.name for t in edited.outputs}
    for node in edited.sorted().nodes:
        if node.op == "QuantizeLinear" and is_per_tensor(node):
            while node.inputs[0].name not in kept and _swap_with_view(node):
                pass
    return edited.sorted()


def _swap_with_view(quantizer: gs.Node) -> bool:
    shown, small = quantizer.inputs[0], quantizer.outputs[0]
    view = shown.inputs[0] if shown.inputs else None
    if view is None or view.op not in _VIEWS or len(shown.outputs) != 1:
        return False
    source = view.inputs[0]
    if is_constant(source) or source.dtype != np.float32:
        return False
    quantized = gs.Variable(f"{shown.name}/{small.name}", small.dtype, source.shape)
    quantizer.inputs[0], quantizer.outputs[0] = source, quantized
    view.inputs[0], view.outputs[0] = quantized, small
    return True
