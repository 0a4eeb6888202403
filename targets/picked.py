"""Inputs that pick entries of tables, such as token ids: none may be out of range."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape

PICKS = frozenset({"Gather", "GatherElements"})
# Operators behind which the same numbers come out, and types in which every entry has one.
_SAME_NUMBERS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_WHOLE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def picked_entries(graph: Graph) -> dict[str, int]:
    """Return the inputs that entries are picked by, and how many the smallest table has."""
    inputs = {str(tensor.name) for tensor in graph.inputs}
    found: dict[str, int] = {}
    for node in graph.nodes:
        shape = static_shape(node.inputs[0]) if node.op in PICKS else None
        name = origin(node.inputs[1]) if shape else ""
        if shape and name in inputs:
            entries = shape[int(node.attrs.get("axis", 0))]
            found[name] = min(entries, found.get(name, entries))
    return found


def check_picked(name: str, values: np.ndarray, entries: Mapping[str, int]) -> None:
    """Raise UnusableInput where an input picks what is not there; -1 is the last entry."""
    count = entries.get(name)
    if count is None or not values.size:
        return
    # Floats become whole numbers towards zero; no comparison holds of NaN.
    whole = np.trunc(values) if values.dtype.kind == "f" else values
    if -count <= whole.min() <= whole.max() < count:
        return
    raise UnusableInput(
        f'Input "{name}" picks entries of a table that has {count}; found {values.min()} to '
        f"{values.max()}. Give numbers from {-count} to {count - 1}."
    )


def origin(tensor: gs.Tensor) -> str:
    """Return the name of the tensor that holds the same numbers and is computed first."""
    while tensor.inputs and _gives_the_same(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)


def _gives_the_same(node: gs.Node) -> bool:
    return node.op in _SAME_NUMBERS or (node.op == "Cast" and node.attrs.get("to") in _WHOLE)
