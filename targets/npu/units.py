"""Units: what integers compute from one QuantizeLinear to the next, rounded once.

A unit ends in a QuantizeLinear and begins at the DequantizeLinears before it. Between them is
one operator, with a bias and clamps behind it; or pointwise operators of one tensor, which
are a table of 256 entries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant
from tilewright.layers import weighted_layer
from tilewright.pointwise import BENT, MOST_NODES, STRAIGHT, joins
from tilewright.targets.npu.operands import (
    Operand,
    Refused,
    Small,
    operand_of,
    operands_of,
    small_of,
)

_MOST_INSIDE = MOST_NODES + 3  # a function, or an operator with its bias and clamps


class Bounds(NamedTuple):
    """Floats between which a clamp keeps a result."""

    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, eq=False)
class Unit:
    """One operator, `root`, or a function of one tensor where that is None.

    `operands` are what the root reads, in its order; None where it has none. `nodes` are all
    float operators inside, in order, `dequantizers` and `quantizer` the nodes around them.
    """

    root: gs.Node | None
    operands: tuple[Operand, ...]
    bias: np.ndarray | None
    bounds: Bounds
    dequantizers: tuple[gs.Node, ...]
    nodes: tuple[gs.Node, ...]
    quantizer: gs.Node

    @property
    def out(self) -> Small:
        """What the unit writes."""
        return small_of(self.quantizer, self.quantizer.outputs[0])

    @property
    def op(self) -> str:
        """The operator of the root, or the pointwise ones."""
        return str(self.root.op) if self.root is not None else function_name(self.nodes)

    @property
    def name(self) -> str:
        """The name of the root, or of the first operator."""
        return name_of(self.root, self.nodes, self.quantizer)

    @property
    def inputs(self) -> tuple[gs.Tensor, ...]:
        """The int8 tensors that it reads."""
        return tuple(o.tensor for o in self.operands if isinstance(o, Small))


def name_of(root: gs.Node | None, nodes: tuple[gs.Node, ...], quantizer: gs.Node) -> str:
    """Return the name that reports call a unit by."""
    return str((root or (*nodes, quantizer)[0]).name)


def function_name(nodes: tuple[gs.Node, ...]) -> str:
    """Return what pointwise operators are called, in order."""
    return "+".join(str(node.op) for node in nodes) or "QuantizeLinear"


def unit_of(quantizer: gs.Node) -> Unit:
    """Return the unit that ends in a QuantizeLinear. Raises Refused where there is none."""
    small_of(quantizer, quantizer.outputs[0])
    nodes = _inside(quantizer)
    sources = _sources(nodes, quantizer)
    results = {t.name for node in nodes for t in node.outputs}
    known = results | set(sources)
    around = tuple(t.inputs[0] for t in sources.values())
    alone = len({node.inputs[0].name for node in around}) == 1
    if alone and all(joins(n, known - {n.outputs[0].name}) for n in nodes):
        operand = operand_of(next(iter(sources.values())))
        return Unit(None, (operand,), None, Bounds(), around, nodes, quantizer)
    bounds, rest = _without_clamps(nodes)
    bias, rest = _without_bias(rest)
    if len(rest) != 1:
        raise Refused(f"{function_name(rest)} is more than one operator")
    return Unit(rest[0], operands_of(rest[0]), bias, bounds, around, nodes, quantizer)


def _inside(quantizer: gs.Node) -> tuple[gs.Node, ...]:
    """Return the float operators between dequantizers and a quantizer, in order."""
    found: dict[str, gs.Node] = {}

    def visit(tensor: gs.Tensor) -> None:
        if _is_read_as_integers(tensor):
            return
        if not tensor.inputs:
            raise Refused(f"{tensor.name} comes in floats")
        (node,) = tensor.inputs
        if node.name in found:
            return
        if len(found) >= _MOST_INSIDE:
            raise Refused("it is more than one operator")
        for source in node.inputs:
            if node.op in STRAIGHT | BENT:
                visit(source)
            elif not _is_read_as_integers(source):
                raise Refused(f"{node.op} reads floats, {source.name}")
        found[node.name] = node

    visit(quantizer.inputs[0])
    return tuple(found.values())


def _is_read_as_integers(tensor: gs.Tensor) -> bool:
    """Say whether a tensor is made of integers, constant, or left out."""
    if is_constant(tensor) or not tensor.name:
        return True
    return bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear"


def _sources(nodes: tuple[gs.Node, ...], quantizer: gs.Node) -> dict[str, gs.Tensor]:
    """Return the dequantized tensors that are read inside."""
    read = [t for node in nodes for t in node.inputs] or quantizer.inputs[:1]
    results = {t.name for node in nodes for t in node.outputs}
    return {t.name: t for t in read if t.name and t.name not in results and not is_constant(t)}


def _without_clamps(nodes: tuple[gs.Node, ...]) -> tuple[Bounds, tuple[gs.Node, ...]]:
    """Split Relu and Clip off the end."""
    low, high = -np.inf, np.inf
    while len(nodes) > 1 and nodes[-1].op in ("Relu", "Clip"):
        ends = _ends(nodes[-1])
        # What is nearer to the end has the last word.
        low, high = max(low, min(ends.low, high)), min(high, max(ends.high, low))
        nodes = nodes[:-1]
    return Bounds(low, high), nodes


def _ends(clamp: gs.Node) -> Bounds:
    if clamp.op == "Relu":
        return Bounds(0.0)
    return Bounds(_end(clamp, 1, "min", -np.inf), _end(clamp, 2, "max", np.inf))


def _end(clip: gs.Node, index: int, name: str, missing: float) -> float:
    """Return a bound of a Clip: from opset 11 on an input, before that an attribute."""
    given = operand_of(clip.inputs[index]) if index < len(clip.inputs) else None
    if isinstance(given, Small):
        raise Refused("its clamp has a bound that is not constant")
    bound = float(clip.attrs.get(name, missing) if given is None else given.item())
    if np.isnan(bound):
        raise Refused("its clamp has a bound of NaN")
    return bound


def _without_bias(
    nodes: tuple[gs.Node, ...],
) -> tuple[np.ndarray | None, tuple[gs.Node, ...]]:
    """Split the Add of a constant, a number for each output of a layer, off the end."""
    if len(nodes) != 2 or nodes[1].op != "Add" or weighted_layer(nodes[0]) is None:
        return None, nodes
    added = [np.asarray(t.values) for t in nodes[1].inputs if is_constant(t)]
    shape = nodes[0].outputs[0].shape
    if len(added) != 1 or shape is None or added[0].ndim > len(shape):
        return None, nodes
    channel = 1 if nodes[0].op.startswith("Conv") else len(shape) - 1
    wide = added[0].reshape((1,) * (len(shape) - added[0].ndim) + added[0].shape)
    if wide.size != wide.shape[channel] or wide.size not in (1, shape[channel]):
        return None, nodes
    return np.broadcast_to(wide.reshape(-1), (shape[channel],)), nodes[:1]
