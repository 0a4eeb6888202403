"""Runs what the backend wrote: regions in the TOSA reference model, the rest in onnxruntime."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import oracle
from tilewright.artifact import read_json
from tilewright.errors import UnusableInput
from tilewright.protocol import Feeds

PROGRAM = "program.json"
FORMAT = 1

Tensors = dict[str, np.ndarray]


class NpuProgram:
    """A loaded artifact. Calls from several threads take turns."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        content = _read(folder)
        self._turn = threading.Lock()
        self._programs = [_Program(folder, each, threads) for each in content["programs"]]

    def __call__(self, feeds: Feeds | None = None) -> Tensors:
        """Run one inference. Raises UnusableInput where feeds do not fit the model."""
        if not isinstance(feeds, Mapping):
            found = "nothing" if feeds is None else type(feeds).__name__
            raise UnusableInput(
                f"An artifact takes arrays by input name, and found {found}. "
                f"Call it with a dict that has the keys {sorted(self._programs[0].inputs)}."
            )
        program = next((p for p in self._programs if p.fits(feeds)), self._programs[0])
        with self._turn:
            return program.run(feeds)


class _Program:
    """What runs at one set of input shapes."""

    def __init__(self, folder: Path, described: Mapping[str, Any], threads: int | None) -> None:
        self.inputs: dict[str, Mapping[str, Any]] = described["inputs"]
        self._outputs: list[str] = described["outputs"]
        self._steps = [
            _on_cpu(folder / step["cpu"], threads) if "cpu" in step else _region(folder, step)
            for step in described["steps"]
        ]

    def fits(self, feeds: Feeds) -> bool:
        """Say whether feeds have this program's shapes."""
        return all(
            name in feeds and list(np.shape(feeds[name])) == wanted["shape"]
            for name, wanted in self.inputs.items()
        )

    def run(self, feeds: Feeds) -> Tensors:
        """Run all steps in order."""
        if unknown := set(feeds) - set(self.inputs):
            raise UnusableInput(
                f"There is no input {sorted(unknown)}; "
                f"this artifact takes {sorted(self.inputs)}."
            )
        known: Tensors = {}
        for name, wanted in self.inputs.items():
            value = np.asarray(feeds[name]) if name in feeds else None
            shape, dtype = wanted["shape"], wanted["dtype"]
            if value is None or list(value.shape) != shape or value.dtype.name != dtype:
                found = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise UnusableInput(
                    f'Input "{name}" must be {dtype} {shape}; found {found}. '
                    f"This artifact takes {sorted(self.inputs)}."
                )
            known[name] = value
        for step in self._steps:
            known.update(step(known))
        return {name: known[name] for name in self._outputs}


def _on_cpu(path: Path, threads: int | None) -> Callable[[Tensors], Tensors]:
    loaded = oracle.session(path, threads)
    names = [value.name for value in loaded.get_inputs()]
    return lambda known: oracle.outputs_of(loaded, {name: known[name] for name in names})


def _region(folder: Path, step: Mapping[str, Any]) -> Callable[[Tensors], Tensors]:
    """Return what runs a region; its tensors lie as the device has them."""
    data = (folder / step["tosa"]).read_bytes()
    name = step["tosa"]

    def run(known: Tensors) -> Tensors:
        fed = [
            np.ascontiguousarray(known[i["name"]].transpose(i["axes"])) for i in step["inputs"]
        ]
        found = run_tosa(data, fed, name)
        results = {}
        for described, values in zip(step["outputs"], found, strict=True):
            axes = described["axes"]
            stored = values.reshape([described["shape"][axis] for axis in axes])
            results[described["name"]] = np.ascontiguousarray(
                stored.transpose(np.argsort(axes))
            )
        return results

    return run


def run_tosa(data: bytes, inputs: list[np.ndarray], name: str) -> list[np.ndarray]:
    """Run a TOSA graph of int8 tensors in Arm's reference model; return its outputs, flat.

    Raises UnusableInput where the model refuses the graph.
    """
    import tosa_reference_model as reference

    try:
        with _silent():
            found, status = reference.run(data, inputs)
        said = status.name
    except ValueError as error:
        said = str(error)
    if said != reference.GraphStatus.TOSA_VALID.name:
        raise UnusableInput(
            f"The TOSA reference model cannot run {name}: {said}. The file is damaged, or "
            "tosa-tools is another version than that of the extra [npu]."
        )
    return [np.asarray(values).view(np.int8).reshape(-1) for values in found]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the reference model's C++ from writing to the process's own output."""
    with contextlib.ExitStack() as kept:
        sink = os.open(os.devnull, os.O_WRONLY)
        kept.callback(os.close, sink)
        for stream in (1, 2):
            try:
                before = os.dup(stream)
            except OSError:  # closed: a service may have no output at all
                kept.callback(os.close, stream)
            else:
                kept.callback(os.close, before)
                kept.callback(os.dup2, before, stream)
            os.dup2(sink, stream)
        yield


def _read(folder: Path) -> dict[str, Any]:
    content = read_json(folder / PROGRAM)
    if content.get("format") != FORMAT:
        raise UnusableInput(
            f'"{folder}" has format {content.get("format")}; this version of tilewright reads '
            f"{FORMAT}. Compile again."
        )
    return content
