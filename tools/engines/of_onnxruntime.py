"""onnxruntime as an engine to be timed, with its own settings but for the threads."""

import onnxruntime

from tilewright.protocol import Executable
from tilewright.tools.load_artifact import load_any


def version() -> str:
    """Return the engine's version."""
    return str(onnxruntime.__version__)


def open_engine(path: str, threads: int) -> Executable:
    """Open an .onnx file."""
    return load_any(path, threads or None)
