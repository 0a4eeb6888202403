"""A built artifact at work on the cpu: its files loaded, its kernels called.

lib.so            the kernels, and functions run_0, run_1, ... that call them
weights.bin       packed weights, mapped and not read: words of a float32 or of four int8
indices.bin.z     offsets and tables, int32, as compressed differences
constants.bin     constants of other dtypes
program.json      where everything lies in memory, and what runs in which order
island_N.onnx     what onnxruntime runs in between
"""

import ctypes
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.artifact import read_json
from tilewright.errors import UnusableInput
from tilewright.oracle import outputs_of
from tilewright.protocol import Feeds
from tilewright.targets.kernels.pen import launch_memory
from tilewright.targets.link import Toolchain
from tilewright.targets.lower.program import ALIGNMENT
from tilewright.targets.lower.tiles import compressed
from tilewright.targets.picked import check_picked
from tilewright.targets.program_files import (
    LIBRARY,
    PROGRAM,
    REST,
    WEIGHTS,
    Storage,
)

STORAGE = Storage(Toolchain().link_shared, "indices.bin.z", compressed)

_KEPT_BLOCKS = 3  # of an output: a caller may compare two answers with the one to come


class CpuProgram:
    """A loaded artifact: one arena, the weights mapped from their file, a virtual machine.

    The arena is one, so a call waits until the one before is over.
    """

    def __init__(self, folder: Path, threads: int | None) -> None:
        content = read_json(folder / PROGRAM)
        _check_cpu(set(content["needs"]))
        wanted = threads or content["threads"] or _cores()
        prepare_pool(wanted)
        import tvm
        from tvm import relax

        self._threads = wanted
        self._turn = threading.Lock()
        self._use_threads = tvm.get_global_func("runtime.config_threadpool")
        bases = _base_arrays(folder, content, wanted)
        arguments = [tvm.runtime.from_dlpack(a) for a in bases.values()]
        machine: Any = None
        # A model of islands only, or whose outputs are its inputs, has no kernels.
        if any("function" in part for p in content["programs"] for part in p["parts"]):
            machine = relax.VirtualMachine(_library(folder / LIBRARY), tvm.cpu())

        def runs(part: Mapping[str, Any]) -> Callable[[], None]:
            if "island" in part:
                return _island(folder, part, bases, wanted)
            function = machine[f"run_{part['function']}"]
            return lambda: function(*arguments) and None

        self._programs = [
            _Program(described, bases, [runs(part) for part in described["parts"]])
            for described in content["programs"]
        ]
        self._latest = self._programs[0]

    def __call__(self, feeds: Feeds | None = None) -> dict[str, np.ndarray]:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        first = self._programs[0]
        if not isinstance(feeds, Mapping):
            found = "nothing" if feeds is None else type(feeds).__name__
            raise UnusableInput(
                f"An artifact takes arrays by input name, and found {found}. "
                f"Call it with a dict that has the keys {sorted(first.inputs)}."
            )
        if unknown := set(feeds) - set(first.inputs):
            raise UnusableInput(
                f"There is no input {sorted(unknown)}; "
                f"this artifact takes {sorted(first.inputs)}."
            )
        program = next((p for p in self._programs if p.fits(feeds)), first)
        with self._turn:
            self._latest = program
            program.take(feeds)
            # The pool is one for all that this thread loads: each call says how many it takes.
            self._use_threads(1, self._threads)
            self.run_parts()
            return program.answers.copies()

    def run_parts(self) -> None:
        """Run on the inputs that are in the arena: what a call takes but for the copies."""
        for part in self._latest.parts:
            part()

    def time_parts(self, feeds: Feeds | None = None) -> list[int]:
        """Run on `feeds`, or what is in the arena; return the nanoseconds of each part."""
        with self._turn:
            if feeds is not None:
                self._latest.take(feeds)
            self._use_threads(1, self._threads)
            stamps = [time.perf_counter_ns()]
            for part in self._latest.parts:
                part()
                stamps.append(time.perf_counter_ns())
        return [end - start for start, end in itertools.pairwise(stamps)]


class _Program:
    """What runs at one set of input shapes."""

    def __init__(
        self,
        described: Mapping[str, Any],
        bases: Mapping[str, np.ndarray],
        parts: list[Callable[[], None]],
    ) -> None:
        self.parts = parts
        self.inputs = _views(described["inputs"], bases)
        self.answers = _Answers(_views(described["outputs"], bases))
        self._entries: dict[str, int] = described["entries"]

    def fits(self, feeds: Feeds) -> bool:
        """Say whether feeds have this program's shapes."""
        return all(n in feeds and np.shape(feeds[n]) == v.shape for n, v in self.inputs.items())

    def take(self, feeds: Feeds) -> None:
        """Copy the inputs into the arena, if they fit."""
        for name, view in self.inputs.items():
            value = np.asarray(feeds[name]) if name in feeds else None
            if value is None or value.shape != view.shape or value.dtype != view.dtype:
                found = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise UnusableInput(
                    f'Input "{name}" must be {view.dtype} {list(view.shape)}; found {found}. '
                    f"This artifact takes {sorted(self.inputs)}."
                )
            check_picked(name, value, self._entries)
            np.copyto(view, value)


def _island(
    folder: Path, part: Mapping[str, Any], bases: Mapping[str, np.ndarray], threads: int
) -> Callable[[], None]:
    """Return what runs nodes in onnxruntime, on what is in the arena."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # A spinning pool would take the cores from the kernels between islands.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = folder / f"island_{part['island']}.onnx"
    session = onnxruntime.InferenceSession(str(path), options)
    inputs, outputs = _views(part["inputs"], bases), _views(part["outputs"], bases)

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


def _views(
    windows: Mapping[str, Mapping[str, Any]], bases: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the arrays in memory that windows show, by name."""

    def view(window: Mapping[str, Any]) -> np.ndarray:
        base = bases[window["base"]]
        strides = [s * base.itemsize for s in window["strides"]]
        return np.lib.stride_tricks.as_strided(base[window["at"] :], window["shape"], strides)

    return {name: view(window) for name, window in windows.items()}


class _Answers:
    """Copies of the outputs, in memory that is used again once a caller has let it go.

    New memory for every call would cost a page fault every 4 KiB. Each output has memory of its
    own: who keeps a small one does not keep a large one with it.
    """

    def __init__(self, views: dict[str, np.ndarray]) -> None:
        self._views = views
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in views}

    def copies(self) -> dict[str, np.ndarray]:
        """Return the outputs by name; each stays as it is for as long as it is held."""
        found = {}
        for name, view in self._views.items():
            block = self._free_block(name)
            found[name] = block[: view.nbytes].view(view.dtype).reshape(view.shape)
            np.copyto(found[name], view)
        return found

    def _free_block(self, name: str) -> np.ndarray:
        """Return memory that no array of an earlier call lies in."""
        blocks = self._blocks[name]
        for i in range(len(blocks)):
            # CPython counts two where nothing else is alive: the list's and the argument's. A
            # variable would be a third. Every array that lies in the memory refers to it.
            if sys.getrefcount(blocks[i]) == 2:
                return blocks[i]
        block = np.empty(max(1, self._views[name].nbytes), np.uint8)
        self._blocks[name] = [*blocks[1 - _KEPT_BLOCKS :], block]
        return block


def cpu_flags() -> set[str]:
    """Return what this process may use of the CPU, as /proc/cpuinfo spells it.

    Nothing where there is no such file; AMX tiles only where the system grants them.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    flags = set(next(lines, ":").split(":", 1)[1].split())
    return flags if "amx_tile" in flags and _may_use_tiles() else flags - {"amx_tile"}


def prepare_pool(threads: int) -> None:
    """Say how many workers TVM's pool may ever have; it reads this when it starts.

    Left alone it takes half of the CPUs, for it believes that they are two a core.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, _cores())))
    # A pinned worker and the caller, which is not, end up on one core at times.
    os.environ.setdefault("TVM_BIND_THREADS", "0")


def _check_cpu(needs: set[str]) -> None:
    """Raise UnusableInput where this CPU cannot run the kernels."""
    missing = needs - cpu_flags()
    if missing:
        raise UnusableInput(
            f"The artifact was compiled for a CPU with {sorted(missing)}, which this one does "
            "not have. Compile it here, or for an older one: `isa` in the target's .toml."
        )


def _may_use_tiles() -> bool:
    """Ask Linux for AMX tiles, which it saves only for processes that want them."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


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


def _base_arrays(folder: Path, content: dict[str, Any], threads: int) -> dict[str, np.ndarray]:
    """Return the arrays that kernels address, by name; the weights stay in their file."""
    rest = (folder / REST).read_bytes()
    arena = _aligned(content["arena_bytes"] + len(rest) + ALIGNMENT)
    if rest:
        start = content["arena_bytes"]
        arena[start : start + len(rest)] = np.frombuffer(rest, np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for name in content["bases"]:
        if name == "weights" and not (folder / WEIGHTS).stat().st_size:
            arrays[name] = _aligned(ALIGNMENT).view(np.float32)
        elif name == "weights":
            # Copy-on-write: DLPack wants a writable array, the file must not change.
            arrays[name] = np.memmap(folder / WEIGHTS, np.float32, mode="c")
        elif name == "indices":
            raw = zlib.decompress((folder / STORAGE.indices).read_bytes())
            steps = np.frombuffer(raw, np.int32)
            arrays[name] = _aligned(steps.nbytes).view(np.int32)
            np.cumsum(steps, dtype=np.int32, out=arrays[name][: steps.size])
        elif name == "launch":
            memory = launch_memory(threads)
            arrays[name] = _aligned(memory.nbytes).view(np.int32)
            arrays[name][:] = memory
        else:
            arrays[name] = arena.view(np.dtype(name))
    return arrays


def _aligned(size: int) -> np.ndarray:
    """Return zeroed bytes whose address and size suit every dtype and DLPack."""
    whole = _whole(size)
    raw = np.zeros(whole + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + whole]


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
