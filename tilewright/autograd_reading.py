"""How rules read a node: what must be known before it runs, and what says it is not covered."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs
import torch

from tilewright.graph import is_constant

Tensor = torch.Tensor
# Takes a node's inputs, None for those left out, and returns its outputs.
Step = Callable[..., Sequence[Tensor]]


class NotCovered(Exception):
    """A node does something that has no translation; the reason is for the user."""


def static(node: gs.Node, index: int, attribute: str = "") -> list[int] | None:
    """Read whole numbers from a constant input, or from the attribute that older opsets have.

    None where the node has neither.
    """
    if attribute and attribute in node.attrs:
        value = node.attrs[attribute]
        return [int(v) for v in np.atleast_1d(value)]
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    tensor = node.inputs[index]
    if not is_constant(tensor):
        raise NotCovered(f'"{tensor.name}" is computed, and would have to be a constant')
    return [int(v) for v in tensor.values.reshape(-1)]


def needed(node: gs.Node, index: int, attribute: str = "") -> list[int]:
    """Read whole numbers likewise. Raises NotCovered where there are none."""
    found = static(node, index, attribute)
    if found is None:
        raise NotCovered(f"it lacks {attribute or f'input {index}'}")
    return found


def number(node: gs.Node, index: int, attribute: str) -> float | int | None:
    """Read a number from a constant input, or an attribute; None where there is neither."""
    if attribute in node.attrs:
        return float(node.attrs[attribute])
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    if not is_constant(node.inputs[index]):
        raise NotCovered(f'"{node.inputs[index].name}" would have to be a constant')
    found: float | int = node.inputs[index].values.item()
    return found


def innermost_first(pads: Sequence[int]) -> list[int]:
    """Return all befores and then all afters as torch has them: pairs, last axis first."""
    half = len(pads) // 2
    return [p for i in reversed(range(half)) for p in (pads[i], pads[half + i])]
