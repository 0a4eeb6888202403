"""Write what cpu_program.py runs: kernels, constants, and where everything lies in memory."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from tilewright.graph import Graph
from tilewright.protocol import Report
from tilewright.target import Target
from tilewright.targets.cpu_program import INDICES, LIBRARY, PROGRAM, REST, WEIGHTS
from tilewright.targets.kernels.pen import Isa, bases_of, dtype_of
from tilewright.targets.link import link_shared
from tilewright.targets.lower.program import (
    Island,
    Part,
    Program,
    place_constants,
    plan_arena,
)
from tilewright.targets.lower.tiles import compressed
from tilewright.targets.lower.window import Buffer, Window


class Written(NamedTuple):
    """Bytes of the files, and of the memory that intermediate results need."""

    stored_bytes: int
    arena_bytes: int


def write_files(
    program: Program,
    parts: Sequence[Part],
    graph: Graph,
    target: Target,
    isa: Isa,
    folder: Path,
    report: Report,
) -> Written:
    """Write a program, cut into `parts`, in the files that cpu_program.py lists."""
    arena, arena_bytes = plan_arena(program)
    offsets: dict[Buffer, int] = {
        buffer: at // np.dtype(buffer.dtype).itemsize for buffer, at in arena.items()
    }
    stored = _write_constants(program, folder, offsets, arena_bytes)
    names = tuple(bases_of([buffer.dtype for buffer in offsets]))
    if any(isinstance(part, list) for part in parts):
        from tilewright.targets.lower.module import Bases, compile_library

        bases = Bases(offsets, names)
        compile_library(parts, bases, isa, folder / LIBRARY, link_shared, report)
        stored += (folder / LIBRARY).stat().st_size
    stored += _write_islands(graph, parts, folder)

    def shown(window: Window) -> dict[str, Any]:
        return {
            "base": window.buffer.dtype,
            "at": offsets[window.buffer] + window.offset,
            "shape": window.shape,
            "strides": window.strides,
        }

    content = {
        "bases": names,
        "arena_bytes": arena_bytes,
        "needs": isa.needs,
        "threads": int(target.settings.get("threads", 0)),
        "entries": program.entries,
        "inputs": {name: shown(w) for name, w in program.inputs.items()},
        "outputs": {name: shown(w) for name, w in program.outputs.items()},
        "parts": _described(parts, shown),
    }
    text = json.dumps(content, indent=1)
    (folder / PROGRAM).write_text(text + "\n", encoding="utf-8")
    return Written(stored, arena_bytes)


def _described(
    parts: Sequence[Part], shown: Callable[[Window], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Say of each part which function or island it is, and of islands what they read."""
    functions, islands = count(), count()
    return [
        {
            "island": next(islands),
            "inputs": {name: shown(w) for name, w in part.inputs},
            "outputs": {name: shown(w) for name, w in part.outputs},
        }
        if isinstance(part, Island)
        else {"function": next(functions)}
        for part in parts
    ]


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


def _write_islands(graph: Graph, parts: Sequence[Part], folder: Path) -> int:
    """Write the models that onnxruntime runs, with their weights; return bytes."""
    islands = [part for part in parts if isinstance(part, Island)]
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
