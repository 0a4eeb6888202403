"""Inputs that pick entries of tables, such as token ids: none may be out of range."""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape

# Operators behind which the same numbers come out.
_SAME_NUMBERS = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


def picked_entries(graph: Graph) -> dict[str, int]:
    """Return the inputs that a Gather picks by, and how many entries the smallest table has.

    Those are int32 or int64.
    """
    inputs = {str(t.name) for t in graph.inputs if t.dtype in (np.int32, np.int64)}
    found: dict[str, int] = {}
    for node in graph.nodes:
        shape = static_shape(node.inputs[0]) if node.op == "Gather" else None
        name = _origin(node.inputs[1]) if shape else ""
        if shape and name in inputs:
            entries = shape[int(node.attrs.get("axis", 0))]
            found[name] = min(entries, found.get(name, entries))
    return found


def check_picked(name: str, values: np.ndarray, entries: Mapping[str, int]) -> None:
    """Raise UnusableInput where an input picks what is not there; -1 is the last entry."""
    count = entries.get(name)
    if count is None or not values.size or -count <= values.min() <= values.max() < count:
        return
    raise UnusableInput(
        f'Input "{name}" picks entries of a table that has {count}; found {values.min()} to '
        f"{values.max()}. Give numbers from {-count} to {count - 1}."
    )


def _origin(tensor: gs.Tensor) -> str:
    while tensor.inputs and tensor.inputs[0].op in _SAME_NUMBERS:
        tensor = tensor.inputs[0].inputs[0]
    return str(tensor.name)
