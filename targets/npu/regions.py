"""Regions: which units the device takes, and the graph that runs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tilewright.errors import CannotLower
from tilewright.graph import Graph
from tilewright.protocol import Note, Report
from tilewright.targets.npu.lower import Lowering, Value, shape_of
from tilewright.targets.npu.operands import Refused, Small
from tilewright.targets.npu.partition import Step, connect, halves
from tilewright.targets.npu.rules import RULES
from tilewright.targets.npu.units import Unit, unit_of
from tilewright.targets.npu.vela import Device, VelaRefused, compile_tosa


@dataclass(frozen=True)
class Region:
    """A TOSA file, what goes in and comes out, and of which unit each of its operators is."""

    data: bytes
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origins: tuple[str, ...]


class Compiled(NamedTuple):
    """A region, and what Vela made of it: a .tflite file, and the commands themselves."""

    region: Region
    packed: Any
    raw: Any


def taken_units(graph: Graph, device: Device, report: Report) -> tuple[list[Unit], list[Note]]:
    """Return the units of a sorted graph that the device runs, and notes on the others.

    Each is lowered and compiled alone: what Vela does not take, it says by itself.
    """
    taken: list[Unit] = []
    notes: list[Note] = []
    quantizers = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    for count, quantizer in enumerate(quantizers):
        if count % 50 == 0:
            report(f"asking Vela about operators ({count} of {len(quantizers)})")
        try:
            unit = unit_of(quantizer)
        except Refused as reason:
            writers = quantizer.inputs[0].inputs or [quantizer]
            notes.append(Note(str(writers[0].name), str(reason)))
            continue
        try:
            compile_tosa(lowered(graph, [unit], device).data, device, raw=True)
        except (Refused, VelaRefused) as reason:
            names = [str(node.name) for node in unit.nodes] or [unit.name]
            notes += [Note(name, f"{unit.op}: {reason}") for name in names]
            continue
        taken.append(unit)
    return taken, notes


def compiled_steps(
    graph: Graph, steps: Sequence[Step], device: Device, report: Report
) -> list[tuple[Step, Compiled | None]]:
    """Return steps with their compiled regions; what Vela refuses whole, it gets in halves.

    Raises CannotLower where it refuses one unit that it took before.
    """
    waiting, done = list(steps), list[tuple[Step, Compiled | None]]()
    while waiting:
        step = waiting.pop(0)
        if not step.units:
            done.append((step, None))
            continue
        report(f"compiling region {len(done)} of {len(done) + len(waiting) + 1} by Vela")
        try:
            done.append((step, _compiled(graph, step, device)))
        except (Refused, VelaRefused) as reason:
            if len(step.units) == 1:
                raise CannotLower(
                    f"edge-npu: Vela took {step.units[0].name} at first, but not in its "
                    f"region: {reason}. Report it, or name it in quantize's skip option."
                ) from reason
            waiting = halves(step) + waiting
            connect(graph, [before for before, _ in done] + waiting)
    return done


def _compiled(graph: Graph, step: Step, device: Device) -> Compiled:
    """Return a step as one region. Raises Refused or VelaRefused."""
    region = lowered(graph, step.units, device, {t.name for t in step.outputs})
    packed, raw = (compile_tosa(region.data, device, raw=raw) for raw in (False, True))
    return Compiled(region, packed, raw)


def lowered(
    graph: Graph, units: Sequence[Unit], device: Device, results: set[str] | None = None
) -> Region:
    """Return a TOSA graph of some units; all that is written comes out, or `results`.

    Raises Refused.
    """
    lowering = Lowering(graph, RULES, device.wide_tables)
    written = {unit.out.tensor.name for unit in units}
    inputs: dict[str, Value] = {}
    for unit in units:
        for operand in unit.operands:
            if isinstance(operand, Small) and operand.tensor.name not in written | set(inputs):
                name = str(operand.tensor.name)
                inputs[name] = lowering.feed(name, shape_of(operand))
    for unit in units:
        lowering.lower(unit)
    names = sorted(written if results is None else results)
    outputs = [lowering.result(name) for name in names]
    data = lowering.writer.data()
    return Region(data, tuple(inputs.values()), tuple(outputs), tuple(lowering.writer.origins))
