"""Remove nodes that change nothing, and what nobody reads."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright.facts import Fact
from tilewright.graph import Graph, is_constant, static_shape
from tilewright.passes.clean.fold_constants import replace_reads
from tilewright.protocol import Context, Outcome


@dataclass(frozen=True)
class RemoveIdentities:
    """Make the readers of y = f(x) read x wherever f changes nothing.

    f is Identity, Dropout in inference, a Reshape to the same shape, a Transpose that keeps
    the order, or a Cast to the same type. Where y is a graph output the node before writes y
    itself; a graph output that is just an input or a constant keeps its Identity. Then nodes
    and weights that no output depends on go.
    """

    name: ClassVar[str] = "remove-identities"
    source: ClassVar[str] = "dead code elimination"
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_IDENTITIES})
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = True

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Bypass the nodes one by one, subgraphs too, then drop what is dead."""
        edited = graph.edit()
        for scope in list(edited.scopes()):
            for node in list(scope.nodes):
                if changes_nothing(node):
                    _bypass(edited, scope, node)
        edited.gs.cleanup()
        return Outcome(edited.sorted())


def changes_nothing(node: gs.Node) -> bool:
    """Say whether the first output always equals the first input and is the only one read."""
    if any(t.outputs for t in node.outputs[1:]) or not node.inputs or not node.outputs:
        return False
    before = node.inputs[0]
    shape = static_shape(before)
    match node.op:
        case "Identity":
            return True
        case "Dropout":
            training = node.inputs[2] if len(node.inputs) > 2 else None
            return training is None or not training.name or _is_false(training)
        case "Reshape":
            return shape is not None and shape == static_shape(node.outputs[0])
        case "Transpose":
            perm = node.attrs.get("perm")
            return perm is not None and list(perm) == sorted(perm)
        case "Cast":
            return before.dtype is not None and _element_type(before.dtype) == _element_type(
                node.attrs["to"]
            )
    return False


def _bypass(graph: Graph, scope: gs.Graph, node: gs.Node) -> None:
    source, target = node.inputs[0], node.outputs[0]
    ends = {t.name for inner in graph.scopes() for t in inner.outputs}
    if target.name not in ends:
        replace_reads(graph.gs, target, source)
    elif (
        source.name not in ends
        and source.inputs
        and any(source.inputs[0] is other for other in scope.nodes)
    ):
        producer = source.inputs[0]
        at = next(i for i, t in enumerate(producer.outputs) if t is source)
        node.inputs.clear()
        node.outputs.clear()
        producer.outputs[at] = target
        replace_reads(graph.gs, source, target)
    else:
        return
    node.inputs.clear()
    node.outputs.clear()
    scope.nodes.remove(node)


def _is_false(tensor: gs.Tensor) -> bool:
    return is_constant(tensor) and not tensor.values.any()


def _element_type(dtype: object) -> int:
    if isinstance(dtype, int):
        return dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))  # type: ignore[call-overload]
