"""Facts: what may be true of a graph, each with the check that proves it."""

from collections.abc import Callable
from enum import StrEnum

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant, static_shape

# A constant up to this size is always worth more than the nodes that compute it.
SMALL_BYTES = 1 << 20
_RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# A folded DequantizeLinear would turn quantized weights back into wide ones.
_QUANTIZERS = {"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"}
_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class Fact(StrEnum):
    """What a pass may need, give or take away."""

    STATIC_SHAPES = "static-shapes"
    CONSTANTS_FOLDED = "constants-folded"
    BATCHNORM_FOLDED = "batchnorm-folded"
    NO_IDENTITIES = "no-identities"
    FINITE_WEIGHTS = "finite-weights"


def has_static_shapes(graph: Graph) -> str | None:
    """Return the first tensor without a known shape, or None."""
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and static_shape(tensor) is None:
                return f'"{tensor.name}" ({node.op} {node.name}) has shape {tensor.shape}'
    return None


def has_folded_constants(graph: Graph) -> str | None:
    """Return a node that could be replaced by its value, or None."""
    for node in graph.nodes:
        if reads_constants_only(node) and not cannot_fold(graph, node):
            return f"{node.op} {node.name} reads constants only"
    return None


def reads_constants_only(node: gs.Node) -> bool:
    """Say whether a node has inputs and all of them are known."""
    return bool(node.inputs) and all(is_constant(t) or not t.name for t in node.inputs)


def cannot_fold(graph: Graph, node: gs.Node) -> str | None:
    """Say why a node that reads constants only must stay, or None."""
    ends = {t.name for t in graph.outputs}
    if any(t.name in ends for t in node.outputs):
        return "it writes a graph output"
    if node.domain not in (None, "", "ai.onnx"):
        return f"{node.op} is not a standard operator"
    if node.op in _RANDOM or (node.op == "Dropout" and len(node.inputs) > 2):
        return f"{node.op} draws random numbers"
    if node.op in _QUANTIZERS:
        return f"{node.op} keeps weights small"
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return f"{node.op} holds subgraphs"
    made_of = sum(t.values.nbytes for t in node.inputs if is_constant(t))
    size = sum(_bytes(t) for t in node.outputs)
    if size > max(SMALL_BYTES, made_of):
        return f"its result has {size} bytes and is made of {made_of}"
    return None


def has_folded_batchnorm(graph: Graph) -> str | None:
    """Return a BatchNormalization right behind a layer that could take it in, or None."""
    for node in graph.nodes:
        if node.op == "BatchNormalization" and cannot_take_batchnorm(graph, node) is None:
            producer = node.inputs[0].inputs[0]
            return f"{node.name} follows {producer.op} {producer.name}"
    return None


def cannot_take_batchnorm(graph: Graph, node: gs.Node) -> str | None:
    """Say why the node before a BatchNormalization cannot take it in, or None."""
    x = node.inputs[0]
    if not x.inputs or x.inputs[0].op not in _LINEAR:
        return "it does not follow a layer with weights"
    host = x.inputs[0]
    if not all(is_constant(t) for t in [*node.inputs[1:], *host.inputs[1:]] if t.name):
        return "its values or the weights before it are not constant"
    if node.attrs.get("training_mode") or sum(bool(t.name) for t in node.outputs) > 1:
        return "it is in training mode"
    if host.op == "MatMul" and (x.shape is None or len(x.shape) != 2):
        return "its channels are not the outputs of the MatMul before it"
    if len(host.inputs[1].shape) < 2 or (host.op == "MatMul" and len(host.inputs[1].shape) > 2):
        return f"the weights of {host.name} are not a matrix"
    if _readers(graph, x.name) > 1:
        return f"{x.name} is read elsewhere too"
    if _readers(graph, host.inputs[1].name) > 1:
        return f"{host.inputs[1].name} is shared"
    return None


def has_no_identities(graph: Graph) -> str | None:
    """Return an Identity that does not stand for a graph output or input, or None."""
    ends = {t.name for t in [*graph.inputs, *graph.outputs]}
    for node in graph.nodes:
        if node.op == "Identity" and node.outputs[0].name not in ends:
            return f"{node.name} only renames"
    return None


def has_finite_weights(graph: Graph) -> str | None:
    """Return a weight that holds NaN or Inf, or None."""
    for name, values in graph.constants().items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            return f'"{name}" holds {count} values that are NaN or Inf, of {values.size}'
    return None


def _bytes(tensor: gs.Tensor) -> int:
    shape = static_shape(tensor)
    if shape is None or tensor.dtype is None:
        return 0
    return int(np.prod(shape, dtype=np.int64) * np.dtype(tensor.dtype).itemsize)


def _readers(graph: Graph, name: str) -> int:
    reads = [t.name for scope in graph.scopes() for node in scope.nodes for t in node.inputs]
    ends = [t.name for scope in graph.scopes() for t in scope.outputs]
    return (reads + ends).count(name)


# Each check returns what contradicts the fact, in words, or None where it holds.
CHECKS: dict[Fact, Callable[[Graph], str | None]] = {
    Fact.STATIC_SHAPES: has_static_shapes,
    Fact.CONSTANTS_FOLDED: has_folded_constants,
    Fact.BATCHNORM_FOLDED: has_folded_batchnorm,
    Fact.NO_IDENTITIES: has_no_identities,
    Fact.FINITE_WEIGHTS: has_finite_weights,
}
