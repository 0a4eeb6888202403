"""What the tests of the gpu target share: builds, run through OpenCL, and the judge."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest

from tests.targets.builds import NEAR, Within
from tilewright import oracle
from tilewright.graph import Graph
from tilewright.protocol import Build, silent
from tilewright.target import Target, read_target
from tilewright.targets import FOLDER
from tilewright.targets.cuda.compile import find_nvcc, find_nvrtc
from tilewright.targets.cuda.executor import GpuProgram
from tilewright.targets.cuda.opencl import OpenClMachine, opencl_missing
from tilewright.targets.gpu import GpuBackend

GPU = read_target(FOLDER / "gpu.toml")

MISSING = opencl_missing()
needs_opencl = pytest.mark.skipif(MISSING is not None, reason=f"there is lacking {MISSING}")
needs_compiler = pytest.mark.skipif(
    not (find_nvcc() or find_nvrtc()), reason="neither nvcc nor NVRTC is installed"
)


class Built(NamedTuple):
    """A build, loaded from a folder that is gone."""

    program: GpuProgram
    told: Build


def gpu(**settings: object) -> Target:
    return replace(GPU, settings={**GPU.settings, **settings})


def build_in(folder: Path, *graphs: Graph, target: Target = GPU) -> Build:
    return GpuBackend().build(graphs, target, folder, silent)


def built(*graphs: Graph, target: Target = GPU) -> Built:
    """Build and load for OpenCL, without the machine code, which takes longest."""
    nothing = patch("tilewright.targets.cuda.artifact.compile_cuda", return_value=None)
    with nothing, tempfile.TemporaryDirectory(prefix="tilewright-test-") as folder:
        told = build_in(Path(folder), *graphs, target=target)
        return Built(GpuProgram(Path(folder), OpenClMachine), told)


def agree(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    within: Within = NEAR,
    target: Target = GPU,
) -> Build:
    """Assert that a built graph answers as onnxruntime does: names, dtypes, shapes, values."""
    made = built(graph, target=target)
    found = made.program(feeds)
    expected = oracle.run(graph, feeds)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        np.testing.assert_allclose(found[name], values, *within, err_msg=name)
    return made.told


def with_empty_tiles(matrix: np.ndarray, share: float, outputs: int = 32) -> np.ndarray:
    """Return (outputs, inputs) weights with this share of each row of tiles' columns zero."""
    r = np.random.default_rng(1)
    matrix = matrix.copy()
    for first in range(0, len(matrix), outputs):
        empty = r.permutation(matrix.shape[1])[: round(share * matrix.shape[1])]
        matrix[first : first + outputs, empty] = 0
    return matrix
