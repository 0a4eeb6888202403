"""Weights that lie in files beside the model: found safely, mapped, never read as a whole."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from onnx import TensorProto, helper

from tilewright.errors import UnusableInput

_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}


def take_external_data(model: onnx.ModelProto, path: Path) -> dict[str, np.ndarray]:
    """Return the external weights by name, read-only, and leave empty ones in the model.

    Raises UnusableInput, naming tensor and file, where a file is missing or too short, or lies
    outside the model's folder: a model from elsewhere must not read your other files.
    """
    folder = path.parent.resolve()
    taken: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = f'Model "{path}": the weight "{name or tensor.name}"'
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = _find(entries.get("location", ""), folder, where)
        values = _map(file, tensor, entries, where)
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        if name is None or tensor.data_type in _PACKED:
            # No place to put an array later, or a form that numpy cannot map: read it now.
            tensor.raw_data = values.tobytes()
        else:
            taken[name] = values.view(_dtype(tensor, where)).reshape(tuple(tensor.dims))
            tensor.raw_data = b""
            del tensor.dims[:]
            tensor.dims.append(0)
    return taken


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str | None, TensorProto]]:
    """Walk all tensors, with the name that each one has as a weight of the graph, if any."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield None, attribute.t
            for tensor in attribute.tensors:
                yield None, tensor
            for subgraph in [*attribute.graphs, attribute.g]:
                yield from _tensors(subgraph)


def _find(location: str, folder: Path, where: str) -> Path:
    given = f'{where} is said to be in "{location}"'
    # Either system's absolute paths are refused on both.
    if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise UnusableInput(f"{given}, which is not a path relative to the model's folder.")
    if ".." in PurePosixPath(location.replace("\\", "/")).parts:
        raise UnusableInput(f"{given}, which leads out of the model's folder.")
    file = folder / location
    if not os.path.lexists(file):
        raise UnusableInput(
            f"{given}, but there is no such file. Put it beside the model; "
            "an ONNX model with external data is two files or more."
        )
    if not file.resolve().is_relative_to(folder):
        raise UnusableInput(
            f"{given}, which is a link to a file outside the model's folder. "
            "Copy the file there if you trust the model."
        )
    if not file.is_file():
        raise UnusableInput(f"{given}, which is not a file.")
    return file


def _map(file: Path, tensor: TensorProto, entries: dict[str, str], where: str) -> np.ndarray:
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        raise UnusableInput(f"{where} has an offset or a length that is no number.") from None
    needed = _bytes(tensor, where)
    if length not in (-1, needed) or offset < 0:
        raise UnusableInput(
            f"{where} needs {needed:,} bytes for its shape {tuple(tensor.dims)}, but the model "
            f"gives it {length:,} at {offset:,}. Export the model again."
        )
    size = file.stat().st_size
    if offset + needed > size:
        raise UnusableInput(
            f'{where} needs {needed:,} bytes at {offset:,} of "{file.name}", which has only '
            f"{size:,} bytes. Copy or download it again."
        )
    if not needed:
        return np.empty(0, np.uint8)
    try:
        mapped = np.memmap(file, np.uint8, mode="r", offset=offset, shape=(needed,))
    except OSError as error:
        raise UnusableInput(f'{where} cannot be read from "{file}": {error}.') from error
    return mapped.view(np.ndarray)


def _bytes(tensor: TensorProto, where: str) -> int:
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in _PACKED:
        return (count + 1) // 2
    return count * int(_dtype(tensor, where).itemsize)


def _dtype(tensor: TensorProto, where: str) -> np.dtype:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError):
        raise UnusableInput(
            f"{where} has the data type {tensor.data_type}, which cannot be external."
        ) from None
