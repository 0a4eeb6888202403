"""Small models for tests, written as ONNX text."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from tilewright.graph import Graph


def small_model(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """Parse "g (float[1,4] x) => (float[1,3] y) { y = MatMul(x, w) }" and add its weights."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    model.graph.initializer.extend(
        numpy_helper.from_array(values, name) for name, values in weights.items()
    )
    return model


def small_graph(text: str, **weights: np.ndarray) -> Graph:
    return Graph.from_onnx(small_model(text, 17, **weights)).infer_shapes()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def two_layers(path: Path) -> Path:
    """Write x (1, 8) -> Gemm 16 -> Relu -> Gemm 4 -> y to a file."""
    text = "g (float[1,8] x) => (float[1,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }"
    model = small_model(text, w=normal(8, 16), b=normal(16), v=normal(16, 4))
    onnx.save(model, path)
    return path


def open_batch(path: Path) -> Path:
    """Write a MatMul whose input is (batch, 8)."""
    text = "g (float[batch,8] x) => (float[batch,4] y) { y = MatMul(x, w) }"
    onnx.save(small_model(text, w=normal(8, 4)), path)
    return path
