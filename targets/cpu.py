"""The cpu backend: tile kernels through TVM's LLVM, in this process."""

import json
import os
import shutil
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from tilewright.errors import CannotLower, DamagedArtifact, UnusableInput
from tilewright.graph import Graph
from tilewright.oracle import outputs_of
from tilewright.protocol import Build, Feeds, Report
from tilewright.target import Target
from tilewright.targets.kernels.pen import Isa, dtype_of
from tilewright.targets.link import link_shared
from tilewright.targets.lower.anchors import ANCHORS
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.patterns import recognize_layer_norms
from tilewright.targets.lower.program import (
    ALIGNMENT,
    Call,
    Island,
    Program,
    place_constants,
    plan_arena,
)
from tilewright.targets.lower.tiles import compressed
from tilewright.targets.lower.window import Buffer, Window

LIBRARY, WEIGHTS, INDICES, REST, PROGRAM = (
    "lib.so",
    "weights.bin",
    "indices.bin.z",
    "constants.bin",
    "program.json",
)
# What each instruction set needs of the CPU, as /proc/cpuinfo spells it; best first.
INSTRUCTION_SETS = {
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "bmi2"},
}


class CpuBackend:
    """Builds shared libraries for x86-64 and runs them in process."""

    name: ClassVar[str] = "cpu"

    def build(self, graph: Graph, target: Target, folder: Path, report: Report) -> Build:
        """Lower, compile and write `lib.so`, the packed weights and `program.json`.

        Raises CannotLower where a node can run neither here nor in onnxruntime.
        """
        from tilewright.targets.lower.module import Bases, compile_library, relax_module

        isa = isa_of(target)
        report("lowering")
        try:
            whole = recognize_layer_norms(graph)
            program = Lowering(whole, target, isa, ANCHORS).run(report)
        except NotLowered as error:
            raise CannotLower(
                f"Target {target.name} cannot run this model: {error}."
            ) from error
        arena, arena_bytes = plan_arena(program)
        offsets: dict[Buffer, int] = {
            buffer: at // np.dtype(buffer.dtype).itemsize for buffer, at in arena.items()
        }
        stored = _write_constants(program, folder, offsets, arena_bytes)
        names = tuple(sorted({buffer.dtype for buffer in offsets}))
        report("compiling kernels")
        if any(isinstance(step, Call) for step in program.steps):
            module = relax_module(program, Bases(offsets, names), isa)
            compile_library(module, isa, folder / LIBRARY, link_shared)
            stored += (folder / LIBRARY).stat().st_size
        stored += _write_islands(graph, program, folder)
        _write_program(program, folder, names, offsets, arena_bytes, target)
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

    def load(self, folder: Path, threads: int | None = None) -> "CpuProgram":
        """Return a function from feeds to outputs; calls from several threads take turns."""
        return CpuProgram(folder, threads)


def isa_of(target: Target) -> Isa:
    """Return the instruction set that a target asks for, or the best that this CPU has."""
    wanted = str(target.settings.get("isa", "host"))
    tables: dict[str, dict[str, Any]] = target.settings["isas"]
    if wanted == "host":
        has = cpu_flags()
        wanted = next((name for name, needs in INSTRUCTION_SETS.items() if needs <= has), "")
        if not wanted:
            raise UnusableInput(
                f"Target {target.name} needs an x86-64 CPU with AVX2 and FMA; this one has "
                f"neither set of {sorted(INSTRUCTION_SETS)}. Compile for another target."
            )
    if wanted not in tables:
        raise UnusableInput(
            f'Target {target.name} asks for isa "{wanted}"; it describes {sorted(tables)}. '
            "Add a table [isas.NAME], or take one of these."
        )
    table = tables[wanted]
    return Isa(wanted, table["mcpu"], table["lanes_fp32"], table["registers"])


def cpu_flags() -> set[str]:
    """Return what this CPU can do, as /proc/cpuinfo spells it; nothing where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return set(next(lines, ":").split(":", 1)[1].split())


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
        "threads": int(target.settings.get("threads", 0)),
        "entries": program.entries,
        "inputs": {name: shown(w) for name, w in program.inputs.items()},
        "outputs": {name: shown(w) for name, w in program.outputs.items()},
        "parts": parts,
    }
    text = json.dumps(content, indent=1)
    (folder / PROGRAM).write_text(text + "\n", encoding="utf-8")


class CpuProgram:
    """A loaded artifact: one arena, the weights mapped from their file, a virtual machine.

    The arena is one, so a call waits until the one before is over.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        content = _read_program(folder)
        wanted = threads or content["threads"] or _cores()
        # The pool reads these when it starts: as many workers as there may ever be.
        os.environ.setdefault("TVM_NUM_THREADS", str(max(wanted, _cores())))
        # A pinned worker and the caller, which is not, end up on one core at times.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        import tvm
        from tvm import relax

        self._threads = wanted
        self._turn = threading.Lock()
        self._use_threads = tvm.get_global_func("runtime.config_threadpool")
        self._bases = _base_arrays(folder, content)
        self._arguments = [tvm.runtime.from_dlpack(a) for a in self._bases.values()]
        machine: Any = None
        # A model of islands only, or whose outputs are its inputs, has no kernels.
        if any("function" in part for part in content["parts"]):
            machine = relax.VirtualMachine(_library(folder / LIBRARY), tvm.cpu())
        self._inputs = {k: self._view(w) for k, w in content["inputs"].items()}
        self._entries: dict[str, int] = content["entries"]
        self._outputs = {k: self._view(w) for k, w in content["outputs"].items()}
        self._parts: list[Callable[[], None]] = []
        for part in content["parts"]:
            if "function" in part:
                self._parts.append(self._segment(machine[f"run_{part['function']}"]))
            else:
                self._parts.append(self._island(folder, part, wanted))

    def __call__(self, feeds: Feeds | None = None) -> dict[str, np.ndarray]:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        if not isinstance(feeds, Mapping):
            found = "nothing" if feeds is None else type(feeds).__name__
            raise UnusableInput(
                f"An artifact takes arrays by input name, and found {found}. "
                f"Call it with a dict that has the keys {sorted(self._inputs)}."
            )
        if unknown := set(feeds) - set(self._inputs):
            raise UnusableInput(
                f"There is no input {sorted(unknown)}; "
                f"this artifact takes {sorted(self._inputs)}."
            )
        with self._turn:
            self._take(feeds)
            # The pool is one for all that this thread loads: each call says how many it takes.
            self._use_threads(1, self._threads)
            self.run_parts()
            return {name: view.copy() for name, view in self._outputs.items()}

    def run_parts(self) -> None:
        """Run on the inputs that are in the arena: what a call takes but for the copies."""
        for part in self._parts:
            part()

    def _take(self, feeds: Feeds) -> None:
        """Copy the inputs into the arena, if they fit."""
        for name, view in self._inputs.items():
            value = np.asarray(feeds[name]) if name in feeds else None
            if value is None or value.shape != view.shape or value.dtype != view.dtype:
                found = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise UnusableInput(
                    f'Input "{name}" must be {view.dtype} {list(view.shape)}; found {found}. '
                    f"This artifact takes {sorted(self._inputs)}."
                )
            entries = self._entries.get(name)
            if entries is not None and not (-entries <= value.min() <= value.max() < entries):
                raise UnusableInput(
                    f'Input "{name}" picks entries of a table that has {entries}; found '
                    f"{value.min()} to {value.max()}. Give numbers below {entries}."
                )
            np.copyto(view, value)

    def _segment(self, function: Any) -> Callable[[], None]:
        return lambda: function(*self._arguments) and None

    def _island(self, folder: Path, part: dict[str, Any], threads: int) -> Callable[[], None]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A spinning pool would take the cores from the kernels between islands.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = folder / f"island_{part['island']}.onnx"
        session = onnxruntime.InferenceSession(str(path), options)
        inputs = {k: self._view(w) for k, w in part["inputs"].items()}
        outputs = {k: self._view(w) for k, w in part["outputs"].items()}

        def run() -> None:
            feeds = {k: np.ascontiguousarray(v) for k, v in inputs.items()}
            found = outputs_of(session, feeds)
            for name, view in outputs.items():
                value = found[name]
                if value.shape != view.shape:
                    raise UnusableInput(
                        f'"{name}" has shape {list(value.shape)} in onnxruntime, and shape '
                        f"inference says {list(view.shape)}. Export the model with another "
                        "opset, or with shapes that agree."
                    )
                np.copyto(view, value)

        return run

    def _view(self, window: dict[str, Any]) -> np.ndarray:
        base = self._bases[window["base"]]
        strides = [s * base.itemsize for s in window["strides"]]
        return np.lib.stride_tricks.as_strided(base[window["at"] :], window["shape"], strides)


def _library(path: Path) -> Any:
    """Load a copy of a shared library, under a name that no other one has had.

    The system's loader gives back what it loaded before under a name, whatever the file has
    become meanwhile: another artifact, compiled into the same folder.
    """
    import tvm

    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        return tvm.runtime.load_module(shutil.copy(path, folder))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _read_program(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / PROGRAM).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedArtifact(
            f"{folder / PROGRAM} cannot be read: {error}. Compile the model again."
        ) from error
    return content


def _base_arrays(folder: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays that kernels address, by name; the weights stay in their file."""
    rest = (folder / REST).read_bytes()
    arena = _aligned(content["arena_bytes"] + len(rest) + ALIGNMENT)
    if rest:
        start = content["arena_bytes"]
        arena[start : start + len(rest)] = np.frombuffer(rest, np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for name in content["bases"]:
        if name == "weights":
            # Copy-on-write: DLPack wants a writable array, the file must not change.
            arrays[name] = np.memmap(folder / WEIGHTS, np.float32, mode="c")
        elif name == "indices":
            raw = zlib.decompress((folder / INDICES).read_bytes())
            steps = np.frombuffer(raw, np.int32)
            arrays[name] = _aligned(steps.nbytes).view(np.int32)
            np.cumsum(steps, dtype=np.int32, out=arrays[name][: steps.size])
        else:
            arrays[name] = arena.view(np.dtype(name))
    return arrays


def _aligned(size: int) -> np.ndarray:
    """Return zeroed bytes whose address and size suit every dtype and DLPack."""
    whole = -(-size // ALIGNMENT) * ALIGNMENT
    raw = np.zeros(whole + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + whole]
