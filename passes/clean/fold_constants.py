"""Replace everything that is known at compile time by its value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.facts import Fact, cannot_fold, reads_constants_only
from tilewright.graph import Graph, constant, is_constant, name_nodes, static_shape
from tilewright.oracle import run
from tilewright.protocol import Context, Note, Outcome


@dataclass(frozen=True)
class FoldConstants:
    """Evaluate what does not depend on the inputs, until nothing is left to evaluate.

    1. Shapes are inferred; Shape and Size of a tensor whose shape is known become constants.
    2. An If whose condition is known becomes the branch that it takes.
    3. All nodes that depend on constants only run once, in onnxruntime.
    Nodes stay that draw random numbers, that hold quantized weights (DequantizeLinear), that
    write a graph output, or whose result is large and larger than what it is made of.
    """

    name: ClassVar[str] = "fold-constants"
    source: ClassVar[str] = "constant folding"
    needs: ClassVar[frozenset[Fact]] = frozenset()
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.CONSTANTS_FOLDED})
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = True

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Fold to a fixpoint: each round removes a node or is the last."""
        edited = graph.edit().sorted()
        while True:
            before = len(edited.gs.nodes)
            edited.infer_shapes()
            _fold_shapes(edited)
            _inline_known_branches(edited)
            _evaluate(edited)
            if len(edited.gs.nodes) == before:
                break
        notes = [
            Note(node.name, f"not folded: {cannot_fold(edited, node)}")
            for node in edited.nodes
            if reads_constants_only(node)
        ]
        return Outcome(edited, tuple(notes))


def _fold_shapes(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op not in ("Shape", "Size") or cannot_fold(graph, node):
            continue
        shape = static_shape(node.inputs[0])
        if shape is None:
            continue
        if node.op == "Size":
            _become_constants(graph, node, [np.array(np.prod(shape, dtype=np.int64))])
            continue
        part = slice(node.attrs.get("start", 0), node.attrs.get("end"))
        _become_constants(graph, node, [np.array(shape[part], dtype=np.int64)])


def _evaluate(graph: Graph) -> None:
    known: set[str] = set()
    nodes = []
    for node in graph.nodes:
        settled = all(is_constant(t) or not t.name or t.name in known for t in node.inputs)
        if node.inputs and settled and not cannot_fold(graph, node):
            nodes.append(node)
            known.update(t.name for t in node.outputs if t.name)
    if not nodes:
        return
    results = _results(graph, nodes)
    for node in nodes:
        values = [results[t.name] for t in node.outputs if t.name]
        for tensor, array in zip([t for t in node.outputs if t.name], values, strict=True):
            tensor.shape, tensor.dtype = list(array.shape), array.dtype
        # An input may have been too large to keep; then this node stays as well.
        if reads_constants_only(node) and not cannot_fold(graph, node):
            _become_constants(graph, node, values)


def _results(graph: Graph, nodes: list[gs.Node]) -> Mapping[str, np.ndarray]:
    part = gs.Graph(
        nodes=nodes,
        outputs=[t for node in nodes for t in node.outputs if t.name],
        opset=graph.opset,
        import_domains=graph.gs.import_domains,
        functions=graph.gs.functions,
        ir_version=graph.gs.ir_version,
    )
    return run(Graph(part), {})


def _become_constants(graph: Graph, node: gs.Node, values: list[np.ndarray]) -> None:
    outputs = [t for t in node.outputs if t.name]
    node.outputs.clear()
    node.inputs.clear()
    for tensor, array in zip(outputs, values, strict=True):
        tensor.to_constant(constant(tensor.name, array).values)
    graph.gs.nodes.remove(node)


def _inline_known_branches(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "If" and is_constant(node.inputs[0]):
            taken = bool(node.inputs[0].values.reshape(()))
            _inline(graph, node, node.attrs["then_branch" if taken else "else_branch"])


def _inline(graph: Graph, node: gs.Node, branch: gs.Graph) -> None:
    """Put a branch's nodes where the If was; its outputs take the names of the If's."""
    _rename_apart(graph, node, branch)
    outputs = list(node.outputs)
    node.outputs.clear()
    renamed: dict[str, gs.Tensor] = {}
    nodes = list(branch.nodes)
    for outer, inner in zip(outputs, list(branch.outputs), strict=True):
        if inner.inputs and inner.inputs[0] in nodes and inner.name not in renamed:
            producer = inner.inputs[0]
            producer.outputs[[t.name for t in producer.outputs].index(inner.name)] = outer
            replace_reads(branch, inner, outer)
            renamed[inner.name] = outer
        else:
            source = renamed.get(inner.name, inner)
            name = f"{node.name}_{outer.name}"
            nodes.append(gs.Node("Identity", name, inputs=[source], outputs=[outer]))
    at = next(i for i, other in enumerate(graph.gs.nodes) if other is node)
    node.inputs.clear()
    graph.gs.nodes[at : at + 1] = nodes
    name_nodes(graph.gs)


def replace_reads(scope: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Make every node of a scope and of its subgraphs read `new` where it read `old`."""
    for inner in [scope, *scope.subgraphs(recursive=True)]:
        for node in inner.nodes:
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    node.inputs[index] = new


def _rename_apart(graph: Graph, node: gs.Node, branch: gs.Graph) -> None:
    # Branches of different Ifs may use one name for different tensors; one scope may not.
    taken = {
        name
        for scope in graph.scopes()
        if scope is not branch
        for name in scope._local_tensors()
    }
    for name, tensor in branch._local_tensors().items():
        if is_constant(tensor) or name in taken:
            tensor.name = f"{node.name}/{name}"
