"""8-bit activations as int8, the only kind that the device has."""

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, constant, is_constant

_OFFSET = 128  # from uint8 to the int8 that means the same


def signed(graph: Graph) -> Graph:
    """Return the graph with int8 wherever quantizers and dequantizers have uint8.

    Scales stay, zero points move along: every float is the same as before. What others read
    too, or a caller gets, is left as it is.
    """
    edited = graph.edit()
    outputs = {t.name for t in edited.outputs}
    for small in {
        t.name: t for node in edited.nodes for t in (*node.inputs, *node.outputs)
    }.values():
        if small.dtype == np.uint8 and small.name not in outputs and _is_between(small):
            _move(small)
    return edited


def _is_between(small: gs.Tensor) -> bool:
    """Say whether nothing but a quantizer writes a tensor, and dequantizers alone read it."""
    writers, readers = small.inputs, small.outputs
    plain = is_constant(small) or (len(writers) == 1 and writers[0].op == "QuantizeLinear")
    return (
        plain
        and bool(readers)
        and all(n.op == "DequantizeLinear" and n.inputs[0] is small for n in readers)
        and all(_zero(n) is not None for n in (*writers, *readers))
    )


def _zero(node: gs.Node) -> np.ndarray | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        scale = node.inputs[1]
        shape = scale.values.shape if is_constant(scale) else ()
        return np.zeros(shape, np.uint8)
    zero = node.inputs[2]
    return zero.values if is_constant(zero) else None


def _move(small: gs.Tensor) -> None:
    for node in (*small.inputs, *small.outputs):
        zero = _zero(node)
        assert zero is not None, "checked by _is_between"
        moved = constant(f"{node.name}/{small.name}/int8_zero", _lowered(zero))
        node.inputs = [*node.inputs[:2], moved]
    if is_constant(small):
        small.values = constant(small.name, _lowered(small.values)).values
    else:
        small.dtype = np.dtype(np.int8)


def _lowered(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.astype(np.int16) - _OFFSET, np.int8)
