"""Load an artifact, or any .onnx file, as a function from feeds to outputs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from tilewright import artifact, oracle
from tilewright.errors import UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.oracle import RUNTIME_ERRORS
from tilewright.protocol import Executable, Feeds
from tilewright.sizes import Sizes
from tilewright.tools.find_target import find_backend
from tilewright.tools.read_model import model_file

_DTYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def load(path: str | Path, threads: int | None = None, device: str | None = None) -> Executable:
    """Return a function that runs an artifact: from arrays by input name to outputs by name.

    `device` is where it runs, as for --device; the best that is there if not given.

    Every file is checked against its sha256 first. Raises DamagedArtifact where one differs.
    """
    if threads is not None and threads < 1:
        raise UnusableInput(f"threads is {threads}; give a whole number from 1 on.")
    folder = Path(path)
    manifest = artifact.read(folder)
    executable = find_backend(manifest["backend"]).load(folder, threads, device)
    if manifest.get("sizes") is None:
        return executable
    return partial(Sizes.from_json(manifest["sizes"]).run, executable)


def load_any(model: str, threads: int | None = None, device: str | None = None) -> Executable:
    """Load an artifact, an .onnx file or "zoo:NAME"; the latter two run in onnxruntime."""
    if Path(model).is_dir():
        return load(model, threads, device)
    if device is not None:
        raise UnusableInput(
            f"--device {device}: it is for artifacts, and {model} is none; onnxruntime runs it "
            "on this machine. Leave the option out, or compile the model."
        )
    return _onnxruntime(open_onnx(model_file(model)[0], threads))


def load_standard(
    model: str, threads: int | None = None, device: str | None = None
) -> Executable:
    """Load as `load_any` does, but onnxruntime fuses nothing around QuantizeLinear.

    Where it does, it rounds otherwise than the standard says.
    """
    if Path(model).is_dir():
        return load(model, threads, device)
    load_any(model, threads, device)  # whatever is wrong with it is told as elsewhere
    return partial(oracle.outputs_of, oracle.session(model_file(model)[0], threads))


def open_onnx(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Open a file in onnxruntime with its own settings, but for the number of threads."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    if not path.is_file():
        raise UnusableInput(f'Model "{path}" does not exist.')
    try:
        return ort.InferenceSession(path, options)
    except RUNTIME_ERRORS as error:
        raise UnusableInput(
            f'Model "{path}" cannot be loaded by onnxruntime: {str(error).splitlines()[0]}'
        ) from error


def inputs_of(model: str) -> list[gs.Variable]:
    """Return the inputs of an artifact or .onnx file; an open first axis counts as a batch."""
    if Path(model).is_dir():
        stored = artifact.read(Path(model)).get("sizes")
        inputs = read_onnx(Path(model) / artifact.MODEL).inputs
        if stored is not None:
            for tensor in inputs:
                first, *rest = Sizes.from_json(stored).inputs[tensor.name] or (None,)
                if first is not None:
                    tensor.shape = [1 if isinstance(first, str) else first, *rest]
        return inputs
    found = []
    for value in open_onnx(model_file(model)[0], threads=1).get_inputs():
        shape = list(value.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = 1
        found.append(gs.Variable(value.name, _DTYPES.get(value.type), shape))
    return found


def _onnxruntime(session: ort.InferenceSession) -> Callable[[Feeds], dict[str, np.ndarray]]:
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except (*RUNTIME_ERRORS, ValueError) as error:
            said = " ".join(str(error).split())
            raise UnusableInput(f"onnxruntime cannot run these inputs: {said}") from error

    return run
