"""Write what runs a program: kernels, constants, and where everything lies in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from tilewright.artifact import write_json
from tilewright.graph import Graph
from tilewright.protocol import Report
from tilewright.target import Target
from tilewright.targets.kernels.pen import Isa, bases_of, dtype_of
from tilewright.targets.kernels.tile import COLUMNS_AHEAD
from tilewright.targets.link import Link
from tilewright.targets.lower.program import (
    Island,
    Part,
    Pool,
    Program,
    plan_arena,
)
from tilewright.targets.lower.window import Buffer, Window

LIBRARY, WEIGHTS, REST, PROGRAM = "lib.so", "weights.bin", "constants.bin", "program.json"


class Storage(NamedTuple):
    """How a device links a library, and keeps offsets and tables: int32, in a file."""

    link: Link
    indices: str
    encode: Callable[[np.ndarray], bytes]


class Written(NamedTuple):
    """Bytes of the files, and of the memory that intermediate results need."""

    stored_bytes: int
    arena_bytes: int


class Lowered(NamedTuple):
    """A model's program for one set of input shapes, cut into parts that run at a time.

    `constants` says where its constants are in the pool.
    """

    program: Program
    parts: Sequence[Part]
    graph: Graph
    constants: Mapping[Buffer, int]


def write_files(
    lowered: Sequence[Lowered],
    pool: Pool,
    target: Target,
    isa: Isa,
    storage: Storage,
    folder: Path,
    report: Report,
) -> Written:
    """Write programs whose constants are in `pool`: code, constants and program.json."""
    arenas = [plan_arena(each.program) for each in lowered]
    arena_bytes = max(size for _, size in arenas)
    stored, starts = _write_constants(pool, storage, folder, arena_bytes)
    places = [
        {buffer: at // _itemsize(buffer.dtype) for buffer, at in arena.items()}
        | {b: starts.get(b.dtype, 0) + at for b, at in each.constants.items()}
        for each, (arena, _) in zip(lowered, arenas, strict=True)
    ]
    names = bases_of([buffer.dtype for offsets in places for buffer in offsets])
    pieces = [
        (part, offsets)
        for each, offsets in zip(lowered, places, strict=True)
        for part in each.parts
        if isinstance(part, list)
    ]
    if pieces:
        from tilewright.targets.lower.module import Piece, compile_library

        compile_library(
            [Piece(*piece) for piece in pieces],
            names,
            isa,
            folder / LIBRARY,
            storage.link,
            report,
        )
        stored += (folder / LIBRARY).stat().st_size
    written = 0
    for each in lowered:
        islands = [part for part in each.parts if isinstance(part, Island)]
        stored += _write_islands(islands, each.graph, written, folder)
        written += len(islands)
    functions, others = count(), count()
    content = {
        "files": {
            name: (folder / name).stat().st_size for name in (WEIGHTS, storage.indices, REST)
        },
        "bases": names,
        "arena_bytes": arena_bytes,
        "needs": isa.needs,
        "threads": int(target.settings.get("threads", 0)),
        "programs": [
            _described(each, offsets, functions, others)
            for each, offsets in zip(lowered, places, strict=True)
        ],
    }
    write_json(folder / PROGRAM, content)
    return Written(stored, arena_bytes)


def _described(
    lowered: Lowered,
    offsets: Mapping[Buffer, int],
    functions: Iterator[int],
    islands: Iterator[int],
) -> dict[str, Any]:
    """Say where a program's inputs and outputs are, and what runs in which order."""

    def shown(window: Window) -> dict[str, Any]:
        return {
            "base": window.buffer.dtype,
            "at": offsets[window.buffer] + window.offset,
            "shape": window.shape,
            "strides": window.strides,
        }

    program = lowered.program
    return {
        "entries": program.entries,
        "inputs": {name: shown(w) for name, w in program.inputs.items()},
        "outputs": {name: shown(w) for name, w in program.outputs.items()},
        "parts": [
            {
                "island": next(islands),
                "inputs": {name: shown(w) for name, w in part.inputs},
                "outputs": {name: shown(w) for name, w in part.outputs},
            }
            if isinstance(part, Island)
            else {"function": next(functions)}
            for part in lowered.parts
        ],
    }


def _write_constants(
    pool: Pool, storage: Storage, folder: Path, arena_bytes: int
) -> tuple[int, dict[str, int]]:
    """Write weights, indices and what else is constant; return bytes, and where kinds start.

    Other dtypes live behind the arena, which is one memory for all of them.
    """
    stored = 0
    with (folder / WEIGHTS).open("wb") as out:
        for values in pool.pieces("weights"):
            out.write(values.data)
        stored += out.tell()
    # Kernels read some offsets behind the last.
    flat = np.concatenate([*pool.pieces("indices"), np.zeros(COLUMNS_AHEAD, np.int32)])
    stored += (folder / storage.indices).write_bytes(storage.encode(flat))
    starts: dict[str, int] = {}
    with (folder / REST).open("wb") as out:
        for kind in pool.kinds():
            if kind not in ("weights", "indices"):
                starts[kind] = (arena_bytes + out.tell()) // _itemsize(kind)
                for values in pool.pieces(kind):
                    out.write(values.data)
        stored += out.tell()
    return stored, starts


def _itemsize(kind: str) -> int:
    return np.dtype(dtype_of(kind)).itemsize


def _write_islands(islands: Sequence[Island], graph: Graph, first: int, folder: Path) -> int:
    """Write the models that onnxruntime runs, with their weights; return bytes.

    They are numbered from `first` on.
    """
    if not islands:
        return 0
    stored = 0
    whole = graph.to_onnx()
    nodes = {node.name: node for node in whole.graph.node}
    for index, island in enumerate(islands, start=first):
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
