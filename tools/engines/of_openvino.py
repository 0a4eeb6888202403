"""OpenVINO as an engine to be timed: one stream, in the precision that the file has."""

from collections.abc import Callable, Mapping

import numpy as np
import openvino


def version() -> str:
    """Return the engine's version."""
    return str(openvino.__version__).partition("-")[0]


def open_engine(
    path: str, threads: int
) -> Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
    """Open an .onnx file."""
    settings: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        # On CPUs with bfloat16 units it would otherwise round float32 models to bfloat16.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return {port.any_name: values for port, values in found.items()}

    return run
