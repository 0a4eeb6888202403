"""Which tensors hold a score for each class: what softmax makes probabilities of."""

import math

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant, static_shape
from tilewright.layers import linear_layer

# What may stand between the scores of classes and an output.
_RESHAPES = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_NORMALIZES = ("LogSoftmax", "Softmax")


def class_scores(graph: Graph) -> list[gs.Tensor]:
    """Return tensors (..., classes) that hold the scores of classes, before any softmax.

    Each is behind an output in floats that a linear layer with so many outputs writes, with a
    bias or reshaped or not: of one row a sample, or of many, such as the next words at each
    position of a text. An embedding that a linear layer writes looks the same, and is taken for
    scores.
    """
    found = (_scores_behind(t) for t in graph.outputs if np.dtype(t.dtype).kind == "f")
    return [tensor for tensor in found if tensor is not None]


def _scores_behind(output: gs.Tensor) -> gs.Tensor | None:
    shape = static_shape(output)
    if not shape or shape[-1] < 2:
        return None
    scores = tensor = output
    while tensor.inputs and (node := tensor.inputs[0]).op in (*_RESHAPES, *_NORMALIZES):
        tensor = node.inputs[0]
        if node.op in _NORMALIZES:
            if not _is_of_last(node, shape):
                return None
            scores = tensor
    if tensor.inputs and tensor.inputs[0].op == "Add":
        computed = [t for t in tensor.inputs[0].inputs if not is_constant(t)]
        tensor = computed[0] if len(computed) == 1 else tensor
    layer = linear_layer(tensor.inputs[0]) if tensor.inputs else None
    if layer is None or layer.outputs != shape[-1]:
        return None
    # The last axis of an image is none of classes.
    return (
        scores if layer.node.op in ("Gemm", "MatMul") or math.prod(shape) == shape[-1] else None
    )


def _is_of_last(node: gs.Node, shape: tuple[int, ...]) -> bool:
    """Say whether a softmax is of the last axis of an output that has a shape.

    Of one row a sample, such as an image's features, whatever the axis is called.
    """
    inner = static_shape(node.inputs[0])
    if inner is None:
        return False
    axis = int(node.attrs.get("axis", -1)) % len(inner)
    return inner[axis] == shape[-1] and (
        axis == len(inner) - 1 or math.prod(inner) == shape[-1]
    )
