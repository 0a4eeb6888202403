"""DeepSparse as an engine to be timed."""

import os
from collections.abc import Callable, Mapping

import numpy as np

os.environ["NM_DISABLE_ANALYTICS"] = "True"
import deepsparse


def version() -> str:
    """Return the engine's version."""
    return str(deepsparse.__version__)


def open_engine(
    path: str, threads: int
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """Open an .onnx file."""
    engine = deepsparse.Engine(model=path, batch_size=1, num_cores=threads or None)

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        arrays = [np.ascontiguousarray(feeds[name]) for name in engine.input_names]
        return dict(zip(engine.output_names, engine.run(arrays), strict=True))

    return run
