"""onnxruntime as the judge: it runs any graph, and says what the right answer is."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, saved_bytes
from tilewright.memory import return_freed_memory
from tilewright.nbits import in_floats

# A message is built, serialised and parsed: three copies. Large models go through files.
_MESSAGE_BYTES = 1 << 27
_TOLD = 8  # feeds that an error names
Session = ort.InferenceSession
# onnxruntime's errors have no common base.
RUNTIME_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NotImplemented,
    state.RuntimeException,
)


def cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def session(
    model: Graph | onnx.ModelProto | Path, threads: int | None = None
) -> ort.InferenceSession:
    """Load a model or a file into onnxruntime, on all cores unless `threads` says otherwise.

    Its threads sleep between runs: a spinning pool would slow everything else in this process.
    Raises UnusableInput where onnxruntime refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # As the standard says: else it may round activations to multiply them by small weights.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        if isinstance(model, Path):
            return_freed_memory(saved_bytes(model))
            return ort.InferenceSession(model, options)
        if isinstance(model, Graph):
            model = in_floats(model)
        if _bytes(model) < _MESSAGE_BYTES:
            message = model.to_onnx() if isinstance(model, Graph) else model
            return ort.InferenceSession(message.SerializeToString(), options)
        graph = model if isinstance(model, Graph) else Graph.from_onnx(model)
        return_freed_memory(_bytes(model))
        with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
            graph.save(Path(folder) / "model.onnx")
            return ort.InferenceSession(Path(folder) / "model.onnx", options)
    except RUNTIME_ERRORS as error:
        raise UnusableInput(
            f"onnxruntime cannot load the model: {error} Check it with onnx.checker, "
            "and that its operators are standard ones."
        ) from error


def run(
    model: Graph | onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int | None = None
) -> dict[str, np.ndarray]:
    """Return every output of one inference, by name."""
    return outputs_of(session(model, threads), feeds)


def outputs_of(
    loaded: ort.InferenceSession, feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return every output of one inference of a loaded model, by name.

    Raises UnusableInput where the feeds do not fit the model.
    """
    names = [output.name for output in loaded.get_outputs()]
    try:
        return dict(zip(names, loaded.run(names, dict(feeds)), strict=True))
    except (*RUNTIME_ERRORS, ValueError) as error:
        told = [f"{name} {value.shape}" for name, value in feeds.items()]
        rest = [f"and {len(told) - _TOLD} more"] if len(told) > _TOLD else []
        shapes = ", ".join(told[:_TOLD] + rest)
        raise UnusableInput(
            f"onnxruntime cannot run the model on {shapes or 'no inputs'}: {error} "
            "Compare the names, shapes and dtypes with the model's inputs."
        ) from error


def _bytes(model: Graph | onnx.ModelProto) -> int:
    return model.weight_bytes() if isinstance(model, Graph) else model.ByteSize()
