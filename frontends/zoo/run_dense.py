"""Run a zoo model as it is in onnxruntime: for parity checks, heads and decode calibration."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import UnusableInput

Feeds = Mapping[str, NDArray[np.generic]]
Run = Callable[[dict[str, NDArray[np.generic]]], dict[str, NDArray[np.generic]]]


def open_model(path: Path, threads: int = 0) -> Run:
    """Return a function that runs the model: input name -> array in, output name -> array out.

    `threads` = 0 leaves the number to onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UnusableInput(
            f"zoo: running {path.name} needs onnxruntime, which is not installed. "
            f"Install it with: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Models as shipped carry unused initializers; onnxruntime would warn about each one.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    return run
