"""Read an ONNX file: any opset, weights inside or beside it, open dimensions bound to sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import onnxruntime as ort
from google.protobuf.message import DecodeError

from tilewright.errors import UnusableInput
from tilewright.frontends.bind_dims import bind_dims
from tilewright.frontends.external_data import take_external_data
from tilewright.graph import Graph, freeze
from tilewright.oracle import RUNTIME_ERRORS

# How files begin that people give by mistake.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file, maybe a PyTorch checkpoint; export it with torch.onnx",
    b"\x80\x02": "a Python pickle; export the module by torch.onnx",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file with `git lfs pull`",
}


def read_onnx(
    path: str | Path,
    dims: Mapping[str, int] | None = None,
    defaults: Mapping[str, int] | None = None,
) -> Graph:
    """Return the graph of an .onnx file, with shapes inferred for the sizes in `dims`.

    `defaults` are sizes for what `dims` leaves open. Weights in external files are mapped, not
    read. Raises UnusableInput for a file that is not ONNX or is cut short, external data that
    is missing, too short or outside the model's folder, dimensions left open, weights that
    hold NaN or Inf, and models that onnxruntime cannot load.
    """
    where = f'Model "{path}"'
    path = Path(path)
    model = _parse(path)
    _check_no_strings(model.graph, where)
    external = take_external_data(model, path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _drop_inputs_that_are_weights(model)
    bind_dims(model, dims or {}, where, defaults)
    graph = Graph.from_onnx(model)
    # The message holds a second copy of embedded weights.
    del model
    _put_weights(graph, external)
    _check_finite(graph, where)
    graph.infer_shapes()
    _check_onnxruntime(graph, where)
    return graph


def _parse(path: Path) -> onnx.ModelProto:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnusableInput(
            f'Model "{path}" does not exist. Give an .onnx file, or zoo:NAME; '
            "`tilewright zoo list` shows the names."
        ) from None
    except OSError as error:
        raise UnusableInput(f'Model "{path}" cannot be read: {error}.') from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnusableInput(_unreadable(path, content)) from error
    if not model.opset_import or not model.ir_version:
        raise UnusableInput(_unreadable(path, content))
    if not model.graph.node:
        raise UnusableInput(f'Model "{path}" has no nodes: there is nothing to compile.')
    return model


def _unreadable(path: Path, content: bytes) -> str:
    for start, what in _OTHER_FORMATS.items():
        if content.startswith(start):
            return f'Model "{path}" is not an ONNX file but {what}.'
    # Every writer puts ir_version, a small number in field 1, first.
    if content[:1] == b"\x08" and len(content) > 2:
        return (
            f'Model "{path}" is damaged or cut short: it begins like an ONNX file, but its '
            f"{len(content):,} bytes do not hold a whole one. Copy or download it again."
        )
    found = f"begins with {content[:8]!r}" if content else "is empty"
    return f'Model "{path}" is not an ONNX file: it {found}. Give a file that torch.onnx wrote.'


def _check_no_strings(graph: onnx.GraphProto, where: str) -> None:
    for value in graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise UnusableInput(
                f'{where} has the input "{value.name}" of strings, which are not supported. '
                "Cut the model behind the nodes that read text, and feed it their numbers."
            )


def _drop_inputs_that_are_weights(model: onnx.ModelProto) -> None:
    """Remove inputs with a default: files before IR version 4 list every weight there."""
    graph = model.graph
    # Else shape inference would look for the weights among the inputs.
    model.ir_version = max(model.ir_version, 4)
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _put_weights(graph: Graph, external: Mapping[str, np.ndarray]) -> None:
    for scope in graph.scopes():
        for name, tensor in scope.tensors().items():
            if isinstance(tensor, gs.Constant) and name in external:
                tensor.values = external[name]
                freeze(tensor)


def _check_finite(graph: Graph, where: str) -> None:
    for scope in graph.scopes():
        for name, tensor in scope.tensors().items():
            if not isinstance(tensor, gs.Constant) or tensor.values.dtype.kind != "f":
                continue
            values = tensor.values
            nans, infinities = _not_finite(values)
            # Attention masks are made of zeros and -Inf, and mean it.
            if nans or (infinities and not _is_mask(values)):
                raise UnusableInput(
                    f'{where}: the weight "{name}" holds {nans} NaN and {infinities} Inf among '
                    f"{values.size:,} values. Training diverged or the file is damaged; "
                    "export the model again."
                )


def _not_finite(values: np.ndarray) -> tuple[int, int]:
    # A sum is finite only where every value is (or overflows, which the counts then settle).
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return 0, 0
    nans = int(np.isnan(values).sum())
    return nans, int(np.isinf(values).sum())


def _is_mask(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return not finite.any()


def _check_onnxruntime(graph: Graph, where: str) -> None:
    """Ask onnxruntime whether it knows every operator, without the large weights."""
    options: Any = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        ort.InferenceSession(graph.skeleton().SerializeToString(), options)
    except RUNTIME_ERRORS as error:
        raise UnusableInput(
            f"{where} cannot be loaded by onnxruntime, which judges every answer: "
            f"{str(error).splitlines()[0]}"
        ) from error
