"""A network for the edge-npu, and how tests build it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Build, Context, silent
from tilewright.target import Target
from tilewright.targets.npu import backend
from tilewright.tools.find_target import find_target

MISSING = "the extra [npu] is not installed"
regions = pytest.importorskip("tilewright.targets.npu.regions", reason=MISSING)
write = pytest.importorskip("tilewright.targets.npu.write", reason=MISSING)
vela = pytest.importorskip("tilewright.targets.npu.vela", reason=MISSING)
pytest.importorskip("tosa_reference_model", reason=MISSING)
pytest.importorskip("ethosu.regor", reason=MISSING)

U85 = find_target("edge-npu")
U55 = find_target("edge-npu-u55-128")
NETWORK = """g (float[1,3,16,16] x) => (float[1,10] y) {
    a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(x, w1) b = Relu(a)
    c = Conv<kernel_shape=[3,3], group=16, pads=[1,1,1,1]>(b, w2) d = HardSwish(c)
    e = Conv<kernel_shape=[1,1]>(d, w3, bias) f = Add(e, b)
    g = GlobalAveragePool(f) h = Flatten(g) y = Gemm<transB=1>(h, w4)
}"""
WEIGHTS = {
    "w1": normal(16, 3, 3, 3, seed=1) / 3,
    "w2": normal(16, 1, 3, 3, seed=2) / 3,
    "w3": normal(16, 16, 1, 1, seed=3) / 4,
    "bias": normal(16, seed=4),
    "w4": normal(10, 16, seed=5),
}


def quantized(graph: Graph, x: np.ndarray) -> Graph:
    calibration = Calibration.from_arrays({str(graph.inputs[0].name): x}, graph.inputs)
    return Quantize(everywhere=True)(graph, Context(DEVICE, calibration)).graph


def network(**weights: np.ndarray) -> Graph:
    return quantized(small_graph(NETWORK, **WEIGHTS | weights), normal(16, 3, 16, 16))


def built(graph: Graph, folder: Path, target: Target = U85) -> Build:
    return backend.NpuBackend().build([graph], target, folder, silent)


def estimates(folder: Path) -> Any:
    return json.loads((folder / backend.ESTIMATES).read_text())
