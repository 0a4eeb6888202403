"""Pointwise operators: those that make each number of a tensor another, by itself."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import onnx_graphsurgeon as gs

from tilewright.graph import is_constant

# The first ones bend nothing with single numbers.
STRAIGHT = frozenset({"Add", "Sub", "Mul", "Div", "Neg"})
BENT = frozenset(
    {
        "Abs",
        "Celu",
        "Clip",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
MOST_NODES = 12  # of one function, such as GELU by Tanh


class Function(NamedTuple):
    """Operators, in order, that make one tensor of another, number by number."""

    nodes: tuple[gs.Node, ...]
    result: gs.Variable


def joins(node: gs.Node, names: set[str]) -> bool:
    """Say whether a node reads nothing but these tensors and single numbers."""
    if node.op not in STRAIGHT | BENT or len(node.outputs) != 1:
        return False
    fresh = node.outputs[0].name not in names
    return fresh and all(
        t.values.size == 1 if is_constant(t) else t.name in names or not t.name
        for t in node.inputs
    )


def functions_of(
    start: gs.Tensor, uses: Mapping[str, int], without: Container[str] = ()
) -> Iterator[Function]:
    """Yield what pointwise operators make of a tensor, from the first result to the last.

    Each function contains the ones before it, and only its result is read by others. `uses`
    says how often a tensor is read, outputs of the graph included; nodes whose names are in
    `without` are of none of them.
    """
    tensors, nodes, read = [start], list[gs.Node](), Counter[str]()
    while len(nodes) < MOST_NODES:
        leaving = [t for t in tensors[1:] if uses.get(t.name, 0) > read[t.name]]
        if len(leaving) == 1:
            yield Function(tuple(nodes), leaving[0])
        names = {t.name for t in tensors}
        behind = (node for tensor in tensors for node in tensor.outputs)
        node = next((n for n in behind if n.name not in without and joins(n, names)), None)
        if node is None:
            return
        nodes.append(node)
        tensors.append(node.outputs[0])
        read.update(t.name for t in node.inputs)
