"""Build what an artifact holds: kernels in two languages, machine code, weights, launches."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tvm

from tilewright.artifact import write_json
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.protocol import LayerDecision, Report
from tilewright.targets.cuda.compile import NO_COMPILER, Cubin, compile_cuda
from tilewright.targets.cuda.device import Device, occupancy
from tilewright.targets.cuda.executor import CUBIN, PROGRAM, WEIGHTS_FILE
from tilewright.targets.cuda.indices import clamped
from tilewright.targets.cuda.launches import Function, write_source
from tilewright.targets.cuda.layers import Layers
from tilewright.targets.cuda.lowering import fuse, prim_funcs, to_relax
from tilewright.targets.cuda.opencl import SOURCE as OPENCL_SOURCE
from tilewright.targets.cuda.program import Program, Weights, described, flatten
from tilewright.targets.cuda.resources import Resources, parse_ptxas
from tilewright.targets.cuda.roofline import function_cycles
from tilewright.targets.cuda.schedule import schedule, tvm_target
from tilewright.targets.picked import picked_entries

CUDA_SOURCE, KERNELS = "kernels.cu", "kernels.json"


class Written(NamedTuple):
    """What is told of an artifact: of the first graph, all of its layers."""

    layers: Sequence[LayerDecision]
    stored_bytes: int
    details: Mapping[str, str]


class _Lowered(NamedTuple):
    """A model at one shape of its inputs; `cycles` are estimated for each function."""

    graph: Graph
    module: Any
    cycles: Mapping[str, float]
    layers: Sequence[LayerDecision]


def write_artifact(
    graphs: Sequence[Graph], device: Device, tile: int, folder: Path, report: Report
) -> Written:
    """Write the files that executor.py lists, for a model at each shape of its inputs.

    `tile` counts the outputs of a sparse tile. Raises CannotLower, and UnusableInput where the
    compiler does not know the device's architecture.
    """
    report("lowering")
    lowered = [_lower(graph, device, tile) for graph in graphs]
    prefixes = [f"size{number}_" if len(graphs) > 1 else "" for number in range(len(graphs))]
    functions = {
        prefix + name: function
        for prefix, each in zip(prefixes, lowered, strict=True)
        for name, function in prim_funcs(each.module).items()
    }
    cuda = write_source(functions, tvm_target(device.arch))
    opencl = write_source(functions, tvm.target.Target({"kind": "opencl", "host": "llvm"}))
    assert cuda.functions == opencl.functions, "kernels are launched differently in OpenCL"
    report(f"compiling {len(functions)} kernels for {device.arch}")
    cubin = compile_cuda(cuda.text, device.arch)
    (folder / OPENCL_SOURCE).write_text(opencl.text, encoding="utf-8")
    if cubin is None:
        report(f"there is {NO_COMPILER}; what runs through OpenCL checks numbers only")
        (folder / CUDA_SOURCE).write_text(cuda.text, encoding="utf-8")
    else:
        (folder / CUBIN).write_bytes(cubin.code)
    weights = Weights()
    programs = [
        _flat(
            each,
            {name[len(p) :]: f for name, f in cuda.functions.items() if name.startswith(p)},
        )
        for p, each in zip(prefixes, lowered, strict=True)
    ]
    placed = [described(program, weights) for program in programs]
    first = programs[0]
    cycles = lowered[0].cycles
    content = {
        "arch": device.arch,
        "estimated_cycles": {
            "value": sum(cycles[name] for name in first.calls),
            "model": device.model,
        },
        "arena_bytes": max(size for _, size in placed),
        "programs": [program for program, _ in placed],
    }
    with (folder / WEIGHTS_FILE).open("wb") as out:
        out.writelines(weights.pieces())
    write_json(folder / PROGRAM, content)
    told = kernel_table(first, cycles, parse_ptxas(cubin.log if cubin else ""), device)
    write_json(folder / KERNELS, told)
    return Written(
        lowered[0].layers,
        weights.bytes + sum((folder / name).stat().st_size for name in _kept(cubin)),
        _details(told, first, device, cubin),
    )


def _kept(cubin: Cubin | None) -> tuple[str, ...]:
    """Return the files that a GPU needs beside weights; others are to be checked and read."""
    return (PROGRAM, CUDA_SOURCE if cubin is None else CUBIN)


def kernel_table(
    program: Program,
    cycles: Mapping[str, float],
    resources: Mapping[str, Resources],
    device: Device,
) -> list[dict[str, Any]]:
    """Return a row for each kernel of a program: launches, and what ptxas said of it.

    `estimated_cycles` are of one call of the function that launches it, and maybe others.
    """
    rows: dict[str, dict[str, Any]] = {}
    for step in program.steps:
        launch = step.launch
        if launch.kernel in rows:
            rows[launch.kernel]["launches"] += 1
            continue
        row: dict[str, Any] = {
            "kernel": launch.kernel,
            "launches": 1,
            "blocks": launch.blocks,
            "threads": launch.threads,
            "estimated_cycles": round(cycles[step.function]),
        }
        if used := resources.get(launch.kernel):
            threads = math.prod(launch.threads)
            share = occupancy(used.registers, used.shared_bytes, threads, device)
            row |= {**used._asdict(), "occupancy": round(share, 3)}
        rows[launch.kernel] = row
    return list(rows.values())


def _lower(graph: Graph, device: Device, tile: int) -> _Lowered:
    layers = Layers(linear_layers(graph), device, tile)
    target = tvm_target(device.arch)
    fused = fuse(to_relax(clamped(graph)), layers.legalizers(), target)
    cycles = {name: function_cycles(f, device) for name, f in prim_funcs(fused).items()}
    return _Lowered(graph, schedule(fused, target), cycles, layers.told())


def _flat(lowered: _Lowered, functions: Mapping[str, Function]) -> Program:
    inputs, outputs = (
        [str(t.name) for t in ends] for ends in (lowered.graph.inputs, lowered.graph.outputs)
    )
    program = flatten(lowered.module, functions, inputs, outputs)
    program.entries = picked_entries(lowered.graph)
    return program


def _details(
    rows: Sequence[Mapping[str, Any]], program: Program, device: Device, cubin: Cubin | None
) -> dict[str, str]:
    """Say in words what `kernels.json` lists."""
    told = {
        "arch": device.arch,
        "compiler": cubin.compiler if cubin else NO_COMPILER,
        "kernels": f"{len(program.steps)} launches of {len(rows)}",
    }
    if any("registers" in row for row in rows):
        used = [row for row in rows if "registers" in row]
        most = max(row["registers"] for row in used)
        spilled = [row["kernel"] for row in used if row["spilled_bytes"]]
        shares = [row["occupancy"] for row in used]
        told |= {
            "registers": f"{min(row['registers'] for row in used)} to {most}",
            "spills": ", ".join(spilled) or "none",
            "occupancy": f"{min(shares):.0%} to {max(shares):.0%}",
        }
    return told
