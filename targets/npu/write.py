"""Writes what an artifact for the device holds, and says what became of each node."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.cost import node_costs
from tilewright.errors import CannotLower
from tilewright.graph import Graph, static_shape
from tilewright.layers import weighted_layer
from tilewright.protocol import LayerDecision, Note, Report
from tilewright.segments import part_of
from tilewright.targets.npu.commands import sparse_convolutions
from tilewright.targets.npu.estimates import layers_of, totals_of
from tilewright.targets.npu.lower import Value
from tilewright.targets.npu.partition import Step, steps_of
from tilewright.targets.npu.regions import Compiled, Region, compiled_steps, taken_units
from tilewright.targets.npu.signed import signed
from tilewright.targets.npu.units import Unit
from tilewright.targets.npu.vela import Device

_BORDER = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Written:
    """What was written for one size of a model: how it runs, and what was decided."""

    described: dict[str, Any]
    layers: tuple[LayerDecision, ...]
    islands: tuple[Note, ...]
    estimates: list[dict[str, Any]]
    sparse: int
    macs: tuple[int, int]  # of the device, and of all


def write_program(
    model: Graph, device: Device, folder: Path, prefix: str, report: Report
) -> Written:
    """Write all steps of a model; names begin with `prefix`. Raises CannotLower."""
    graph = signed(model).sorted()
    units, notes = taken_units(graph, device, report)
    if not units:
        raise CannotLower(_nothing_left(graph, notes))
    described, estimates, sparse = [], [], 0
    steps = compiled_steps(graph, steps_of(graph, units), device, report)
    for number, (step, compiled) in enumerate(steps):
        if compiled is None:
            described.append(_write_cpu(graph, step, folder / f"{prefix}cpu_{number}.onnx"))
            continue
        name = f"{prefix}region_{number}"
        estimate, found = _write_region(compiled, folder, name)
        estimates.append(estimate)
        sparse += found
        described.append(_described(compiled.region, step, name))
    rows = [row for estimate in estimates for row in estimate["layers"]]
    return Written(
        described={
            "inputs": {
                str(t.name): {
                    "shape": list(static_shape(t) or ()),
                    "dtype": np.dtype(t.dtype).name,
                }
                for t in graph.inputs
            },
            "outputs": [str(t.name) for t in graph.outputs],
            "steps": described,
        },
        layers=tuple(_decisions(units, rows)),
        islands=tuple(_islands([step for step, _ in steps], notes)),
        estimates=estimates,
        sparse=sparse,
        macs=_macs(graph, units),
    )


def _write_cpu(graph: Graph, step: Step, path: Path) -> dict[str, Any]:
    """Write nodes for a CPU as a model of their own."""
    kinds = {str(t.name): (np.dtype(t.dtype), static_shape(t)) for t in step.inputs}
    part = part_of(graph, step.nodes, kinds, [str(t.name) for t in step.outputs])
    path.write_bytes(part.SerializeToString(deterministic=True))
    return {"cpu": path.name}


def _write_region(compiled: Compiled, folder: Path, name: str) -> tuple[dict[str, Any], int]:
    """Write a region's files; return Vela's estimates, and how many convolutions run as 2:4."""
    region, packed, raw = compiled
    (folder / f"{name}.tosa").write_bytes(region.data)
    (folder / f"{name}_vela.tflite").write_bytes(bytes(packed.model))
    stream = bytes(raw.command_stream)
    arrays = {
        "commands": np.frombuffer(stream, np.uint8),
        "weights": np.frombuffer(bytes(raw.read_only.data), np.uint8),
        "weights_region": np.array([raw.read_only.region]),
        "scratch_bytes": np.array([raw.scratch.size, raw.scratch_fast.size]),
        "scratch_regions": np.array([raw.scratch.region, raw.scratch_fast.region]),
        **_placed("input", raw.inputs),
        **_placed("output", raw.outputs),
    }
    np.savez(folder / f"{name}_vela.npz", **arrays)  # type: ignore[arg-type]
    estimate = {
        "region": name,
        "totals": totals_of(raw),
        "layers": layers_of(raw, region.origins),
    }
    return estimate, sparse_convolutions(stream)


def _placed(kind: str, tensors: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return where the device finds tensors: memory region, byte in it, and shape, of each."""
    return {
        f"{kind}_regions": np.array([t.region for t in tensors]),
        f"{kind}_addresses": np.array([t.address for t in tensors]),
        f"{kind}_shapes": np.array([t.shape for t in tensors]),
    }


def _described(region: Region, step: Step, name: str) -> dict[str, Any]:
    outputs = sorted(str(t.name) for t in step.outputs)
    return {
        "tosa": f"{name}.tosa",
        "commands": f"{name}_vela.tflite",
        "inputs": [_tensor(v.tensor.name, v) for v in region.inputs],
        "outputs": [_tensor(n, v) for n, v in zip(outputs, region.outputs, strict=True)],
    }


def _tensor(name: str, value: Value) -> dict[str, Any]:
    """Describe an int8 tensor; `axes` are those of ONNX, in the order in which they lie."""
    return {"name": name, "shape": list(value.shape), "axes": list(value.axes)}


def _decisions(
    units: Sequence[Unit], rows: Sequence[Mapping[str, Any]]
) -> Iterator[LayerDecision]:
    for unit in units:
        layer = None if unit.root is None else weighted_layer(unit.root)
        if layer is None:
            continue
        own = [row for row in rows if row["unit"] == unit.name]
        sparse = any(row["sparse"] for row in own)
        yield LayerDecision(
            name=unit.name,
            op=unit.op,
            shape=(layer.outputs, layer.inputs, layer.positions),
            tile="2:4" if sparse else "1x1",
            density=0.5 if sparse else 1.0,
            bits=8,
            stored_bytes=sum(row["encoded_weight_bytes"] for row in own),
            kernel="+".join(row["operator"] for row in own) or "none",
            reason=_told(own, sparse),
        )


def _told(rows: Sequence[Mapping[str, Any]], sparse: bool) -> str:
    if not rows:
        return "Vela runs it together with another layer, whose estimate holds it"
    cycles = sum(row["cycles"] for row in rows)
    busy = sum(row["npu_cycles"] for row in rows)
    bound = "its multipliers" if cycles <= busy else "memory"
    mode = "; the commands switch 2:4 weights on" if sparse else ""
    return f"Vela estimates {cycles:,} cycles, {busy:,} without memory; bound by {bound}{mode}"


def _islands(steps: Sequence[Step], notes: Sequence[Note]) -> Iterator[Note]:
    reasons = {note.node: note.reason for note in notes}
    for step in steps:
        for node in step.nodes:
            reason = reasons.get(str(node.name), f"{node.op} is not between quantized tensors")
            if node.op in _BORDER:
                reason = "it is where floats become integers or are made of them"
            yield Note(str(node.name), reason)


def _macs(graph: Graph, units: Sequence[Unit]) -> tuple[int, int]:
    inside = {str(node.name) for unit in units for node in unit.nodes}
    costs = {cost.name: cost.macs for cost in node_costs(graph)}
    return sum(m for n, m in costs.items() if n in inside), sum(costs.values())


def _nothing_left(graph: Graph, notes: Sequence[Note]) -> str:
    if not notes:
        return (
            "edge-npu runs int8 operators between QuantizeLinear and DequantizeLinear, and the "
            f"model has none among its {len(graph.nodes)} nodes. Compile with --precision int8 "
            "and calibration data, or give a quantized model."
        )
    told = "; ".join(f"{note.node}: {note.reason}" for note in notes[:5])
    more = f"; and {len(notes) - 5} more" if len(notes) > 5 else ""
    return f"edge-npu can run no operator of this model: {told}{more}."
