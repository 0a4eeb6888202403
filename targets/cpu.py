"""The cpu backend: tile kernels through TVM's LLVM; cpu_program.py runs what it writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Report
from tilewright.target import Target
from tilewright.targets.cpu_program import (
    INDICES,
    LIBRARY,
    PROGRAM,
    REST,
    WEIGHTS,
    CpuProgram,
    cpu_flags,
)
from tilewright.targets.kernels.pen import Isa, dtype_of
from tilewright.targets.link import link_shared
from tilewright.targets.lower.anchors import ANCHORS
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.patterns import quantize_before_views, recognize_layer_norms
from tilewright.targets.lower.program import (
    LAUNCH,
    Call,
    Island,
    Program,
    place_constants,
    plan_arena,
)
from tilewright.targets.lower.tiles import compressed
from tilewright.targets.lower.window import Buffer, Window


class CpuBackend:
    """Builds shared libraries for x86-64 and runs them in process."""

    name: ClassVar[str] = "cpu"

    def build(self, graph: Graph, target: Target, folder: Path, report: Report) -> Build:
        """Lower, compile and write `lib.so`, the packed weights and `program.json`.

        Raises CannotLower where a node can run neither here nor in onnxruntime.
        """
        from tilewright.targets.lower.module import Bases, compile_library, relax_module

        isa = isa_of(target)
        graph = in_floats(graph)
        report("lowering")
        try:
            whole = quantize_before_views(recognize_layer_norms(graph))
            program = Lowering(whole, target, isa, ANCHORS).run(report)
        except NotLowered as error:
            raise CannotLower(
                f"Target {target.name} cannot run this model: {error}."
            ) from error
        arena, arena_bytes = plan_arena(program)
        offsets: dict[Buffer, int] = {
            buffer: at // np.dtype(buffer.dtype).itemsize for buffer, at in arena.items()
        }
        offsets[LAUNCH] = 0
        stored = _write_constants(program, folder, offsets, arena_bytes)
        names = tuple(sorted({buffer.dtype for buffer in offsets}))
        report("compiling kernels")
        if any(isinstance(step, Call) for step in program.steps):
            module = relax_module(program, Bases(offsets, names), isa)
            compile_library(module, isa, folder / LIBRARY, link_shared)
            stored += (folder / LIBRARY).stat().st_size
        stored += _write_islands(graph, program, folder)
        _write_program(program, folder, names, offsets, arena_bytes, target, isa)
        return Build(
            layers=tuple(program.layers),
            islands=tuple(program.islands),
            stored_bytes=stored,
            details={
                "isa": isa.name,
                "calls": str(len(program.steps)),
                "arena_bytes": str(arena_bytes),
            },
        )

    def load(self, folder: Path, threads: int | None = None) -> CpuProgram:
        """Return a function from feeds to outputs; calls from several threads take turns."""
        return CpuProgram(folder, threads)


def isa_of(target: Target) -> Isa:
    """Return the instruction set that a target asks for, or the best that this CPU has."""
    wanted = str(target.settings.get("isa", "host"))
    tables: dict[str, dict[str, Any]] = target.settings["isas"]
    if wanted == "host":
        has = cpu_flags()
        runs = [name for name, table in tables.items() if has >= set(table["needs"])]
        if not runs:
            raise UnusableInput(
                f"Target {target.name} needs an x86-64 CPU with AVX2 and FMA; this one has "
                f"none of {sorted(tables)}. Compile for another target."
            )
        wanted = runs[0]
    if wanted not in tables:
        raise UnusableInput(
            f'Target {target.name} asks for isa "{wanted}"; it describes {sorted(tables)}. '
            "Add a table [isas.NAME], or take one of these."
        )
    table = tables[wanted]
    return Isa(
        name=wanted,
        mcpu=table["mcpu"],
        lanes=table["lanes_fp32"],
        registers=table["registers"],
        dot=table["dot"],
        features=tuple(table["features"]),
        needs=tuple(table["needs"]),
    )


def _write_constants(
    program: Program, folder: Path, offsets: dict[Buffer, int], arena_bytes: int
) -> int:
    """Write weights, indices and what else is constant; add their offsets; return bytes.

    Other dtypes live behind the arena, which is one memory for all of them.
    """
    stored = 0
    places, count = place_constants(program, "weights")
    offsets.update(places)
    with (folder / WEIGHTS).open("wb") as out:
        for values in _in_place(program, places, count):
            out.write(values.data)
    stored += count * 4
    places, count = place_constants(program, "indices")
    offsets.update(places)
    flat = np.concatenate([np.zeros(0, np.int32), *_in_place(program, places, count)])
    packed = compressed(flat)
    (folder / INDICES).write_bytes(packed)
    stored += len(packed)
    with (folder / REST).open("wb") as out:
        for kind in sorted({b.dtype for b in program.constants} - {"weights", "indices"}):
            places, count = place_constants(program, kind)
            start = (arena_bytes + out.tell()) // np.dtype(kind).itemsize
            offsets.update({buffer: start + at for buffer, at in places.items()})
            for values in _in_place(program, places, count):
                out.write(values.data)
        stored += out.tell()
    return stored


def _in_place(program: Program, places: dict[Buffer, int], count: int) -> Iterator[np.ndarray]:
    """Yield constants and the gaps between them, in order."""
    at = 0
    for buffer, place in places.items():
        values = program.constants[buffer]
        if place > at:
            yield np.zeros(place - at, values.dtype)
        yield values
        at = place + values.size
    if count > at:
        yield np.zeros(count - at, program.constants[next(iter(places))].dtype)


def _write_islands(graph: Graph, program: Program, folder: Path) -> int:
    """Write the models that onnxruntime runs, with their weights; return bytes."""
    islands = [step for step in program.steps if isinstance(step, Island)]
    if not islands:
        return 0
    stored = 0
    whole = graph.to_onnx()
    nodes = {node.name: node for node in whole.graph.node}
    for index, island in enumerate(islands):
        node = nodes[island.node.name]
        names = _names_read(node)
        model = onnx.helper.make_model(
            onnx.helper.make_graph(
                [node],
                island.node.name,
                [_value_info(name, w) for name, w in island.inputs],
                [_value_info(name, w) for name, w in island.outputs],
                [t for t in whole.graph.initializer if t.name in names],
            ),
            opset_imports=whole.opset_import,
            ir_version=whole.ir_version,
        )
        path = folder / f"island_{index}.onnx"
        stored += path.write_bytes(model.SerializeToString(deterministic=True))
    return stored


def _names_read(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for child in inner.node:
                names |= _names_read(child)
            names |= {o.name for o in inner.output}
    return names


def _value_info(name: str, window: Window) -> onnx.ValueInfoProto:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(window.dtype)))
    return onnx.helper.make_tensor_value_info(name, dtype, window.shape)


def _write_program(
    program: Program,
    folder: Path,
    names: tuple[str, ...],
    offsets: dict[Buffer, int],
    arena_bytes: int,
    target: Target,
    isa: Isa,
) -> None:
    from tilewright.targets.lower.module import segments

    def shown(window: Window) -> dict[str, Any]:
        return {
            "base": window.buffer.dtype,
            "at": offsets[window.buffer] + window.offset,
            "shape": window.shape,
            "strides": window.strides,
        }

    parts: list[dict[str, Any]] = []
    for part in segments(program):
        if isinstance(part, Island):
            parts.append(
                {
                    "island": sum("island" in p for p in parts),
                    "inputs": {name: shown(w) for name, w in part.inputs},
                    "outputs": {name: shown(w) for name, w in part.outputs},
                }
            )
        else:
            parts.append({"function": sum("function" in p for p in parts)})
    content = {
        "bases": names,
        "arena_bytes": arena_bytes,
        "needs": isa.needs,
        "threads": int(target.settings.get("threads", 0)),
        "entries": program.entries,
        "inputs": {name: shown(w) for name, w in program.inputs.items()},
        "outputs": {name: shown(w) for name, w in program.outputs.items()},
        "parts": parts,
    }
    text = json.dumps(content, indent=1)
    (folder / PROGRAM).write_text(text + "\n", encoding="utf-8")
