"""Who runs what, in which order: regions for the device, the rest of the graph between them.

Steps alternate between the CPU and the device, but for regions that Vela takes only in parts.
A node's step is the first of its own kind that comes no earlier than those it reads from: so
nothing waits for a later step, and all that can run in one region does.

This works on the ONNX graph itself. Patterns in Relax would have to be written for every
operator, and part where a DequantizeLinear has two readers; here a unit is what stands between
quantizers, whatever it is, and whether the device takes it is found by lowering it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant
from tilewright.segments import reads
from tilewright.targets.npu.units import Unit

CPU, NPU = 0, 1


@dataclass(eq=False)
class Step:
    """Units of one region, or nodes for the CPU; the tensors that go in and come out."""

    units: list[Unit] = field(default_factory=list)
    nodes: list[gs.Node] = field(default_factory=list)
    inputs: list[gs.Tensor] = field(default_factory=list)
    outputs: list[gs.Tensor] = field(default_factory=list)

    @property
    def items(self) -> Sequence[Unit | gs.Node]:
        """What runs in it."""
        return self.units or self.nodes


def steps_of(graph: Graph, units: Iterable[Unit]) -> list[Step]:
    """Return the steps of a sorted graph, of which these units run on the device."""
    by_end = {unit.quantizer.name: unit for unit in units}
    items = _needed(graph, by_end)
    levels: dict[str, int] = {}  # of the tensors
    steps: dict[int, Step] = {}
    for item in items:
        kind = NPU if isinstance(item, Unit) else CPU
        before = max((levels.get(name, 0) for name in _reads(item)), default=0)
        level = before + (before % 2 != kind)
        levels.update(dict.fromkeys(_writes(item), level))
        step = steps.setdefault(level, Step())
        if isinstance(item, Unit):
            step.units.append(item)
        else:
            step.nodes.append(item)
    ordered = [steps[level] for level in sorted(steps)]
    connect(graph, ordered)
    return ordered


def _needed(graph: Graph, units: Mapping[str, Unit]) -> list[Unit | gs.Node]:
    """Return the units, and the nodes that they do not replace, in order."""
    wanted = {t.name for t in graph.outputs}
    kept: list[Unit | gs.Node] = []
    for node in reversed(graph.nodes):
        if not any(t.name in wanted for t in node.outputs):
            continue
        item = units.get(node.name, node)
        kept.append(item)
        wanted |= _reads(item)
    return kept[::-1]


def halves(step: Step) -> list[Step]:
    """Return a region as two, one after the other; `connect` says what goes between them."""
    middle = len(step.units) // 2
    return [Step(units=step.units[:middle]), Step(units=step.units[middle:])]


def connect(graph: Graph, steps: Sequence[Step]) -> None:
    """Note which tensors go in and out of each step."""
    tensors = graph.gs.tensors()
    later = {t.name for t in graph.outputs}
    for step in reversed(steps):
        written = {name for item in step.items for name in _writes(item)}
        read = {name for item in step.items for name in _reads(item)}
        step.outputs = [tensors[name] for name in sorted(written & later)]
        step.inputs = [tensors[name] for name in sorted(read - written)]
        later |= read


def _reads(item: Unit | gs.Node) -> set[str]:
    if isinstance(item, Unit):
        return {t.name for t in item.inputs}
    return reads(item)


def _writes(item: Unit | gs.Node) -> list[str]:
    if isinstance(item, Unit):
        return [item.out.tensor.name]
    return [t.name for t in item.outputs if t.name and not is_constant(t)]
