"""A graph as a function in torch, with gradients to its weights.

torch is the extra `heal`, imported when it is needed. What each operator does is said in
`autograd_ops.py`, and judged by onnxruntime (tests/core/test_autograd.py).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, is_constant

if TYPE_CHECKING:
    from torch import Tensor


def require_torch(what: str) -> Any:
    """Return the module torch. Raises UnusableInput where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UnusableInput(
            f"{what} needs gradients, and torch, which computes them, is not installed. "
            "Run pip install 'tilewright[heal]'."
        ) from error
    return torch


class Differentiable:
    """A graph of one inference as a torch function of many samples at once.

    `weights` are copies of the constants named in `trainable`, and require gradients.
    """

    def __init__(self, graph: Graph, trainable: Collection[str]) -> None:
        """Translate a graph that has its nodes in order.

        Raises UnusableInput for operators that are not covered, and without torch.
        """
        self._torch = torch = require_torch("A pass")
        from tilewright.autograd_ops import translate

        self._nodes = graph.nodes
        self._steps = [translate(node, graph.opset) for node in self._nodes]
        self._fixed: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        for name, tensor in graph.gs.tensors().items():
            if not is_constant(tensor) or np.dtype(tensor.dtype) not in _DTYPES:
                continue
            copied = torch.from_numpy(np.array(tensor.values))
            if name in trainable:
                self.weights[name] = copied.requires_grad_()
            else:
                self._fixed[name] = copied

    def __call__(
        self, feeds: Mapping[str, "Tensor"], wanted: Sequence[str]
    ) -> dict[str, "Tensor"]:
        """Return the `wanted` tensors for feeds of (samples, *shape) each, stacked likewise.

        Nodes behind the last wanted one are not run.
        """
        written = [{tensor.name for tensor in node.outputs} for node in self._nodes]
        last = max(index for index, names in enumerate(written) if names & set(wanted))

        def one(sample: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
            values = {**self._fixed, **self.weights, **sample}
            for node, step in zip(self._nodes[: last + 1], self._steps, strict=False):
                made = step(*(values.get(tensor.name) for tensor in node.inputs))
                values.update(zip((t.name for t in node.outputs), made, strict=False))
            return {name: values[name] for name in wanted}

        laid_out = {name: _with_channels_last(x) for name, x in feeds.items()}
        found: dict[str, Tensor] = self._torch.vmap(one)(laid_out)
        return found


def _with_channels_last(x: "Tensor") -> "Tensor":
    """Return a stack of images as it was, but in memory each pixel's channels side by side.

    What convolutions make of it lies likewise, and their gradients take a third of the time.
    """
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if x.ndim == _STACKED_IMAGES else x


_STACKED_IMAGES = 5  # axes: samples, one inference's batch, channels, height, width
# What torch has a kind for; other constants can only be read when operators are translated.
_DTYPES = frozenset(
    np.dtype(kind)
    for kind in ("bool", "float16", "float32", "float64", "uint8", "int8", "int16", "int32")
) | {np.dtype("int64")}
