"""What the tests of the cpu target share: builds in a folder that goes away, and the judge."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.small_models import small_model
from tilewright import oracle
from tilewright.graph import Graph
from tilewright.protocol import Build, Executable, silent
from tilewright.target import Target, read_target
from tilewright.targets import FOLDER
from tilewright.targets.cpu import CpuBackend, isa_of
from tilewright.targets.cpu_program import cpu_flags
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.anchors import ANCHORS
from tilewright.targets.lower.lowering import Lowering
from tilewright.targets.lower.program import Call


class Within(NamedTuple):
    """How far two answers may lie apart."""

    rtol: float
    atol: float


EXACT = Within(0.0, 0.0)
# For values near 1: some units in the last place, as sums are added up in another order.
NEAR = Within(1e-5, 1e-5)
CPU = read_target(FOLDER / "cpu.toml")


def _param(name: str) -> object:
    missing = set(CPU.settings["isas"][name]["needs"]) - cpu_flags()
    reason = f"this CPU lacks {sorted(missing)}"
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=reason))


every_isa = pytest.mark.parametrize("isa", [_param("avx2"), _param("avx512")])
# They differ in how they multiply 8-bit integers.
every_dot = pytest.mark.parametrize("isa", [_param(name) for name in CPU.settings["isas"]])


def cpu(isa: str = "host", **settings: object) -> Target:
    return replace(CPU, settings={**CPU.settings, "isa": isa, **settings})


def vector_unit(isa: str) -> Isa:
    return isa_of(cpu(isa))


def graph_of(text: str, opset: int = 17, **weights: np.ndarray) -> Graph:
    return Graph.from_onnx(small_model(text, opset, **weights)).infer_shapes()


def build(graph: Graph, folder: Path, target: Target | None = None) -> Build:
    return CpuBackend().build([graph], target or cpu(), folder, silent)


def built(
    graph: Graph, target: Target | None = None, threads: int = 1
) -> tuple[Executable, Build]:
    """Build and load in a folder that is gone afterwards; what is loaded stays mapped."""
    with tempfile.TemporaryDirectory(prefix="tilewright-test-") as folder:
        build_ = build(graph, Path(folder), target)
        return CpuBackend().load(Path(folder), threads), build_


def agree(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    isa: str = "host",
    within: Within = NEAR,
    **settings: object,
) -> Build:
    """Assert that a built graph answers as onnxruntime does: names, dtypes, shapes, values."""
    expected = oracle.run(graph, feeds)
    executable, made = built(graph, cpu(isa, **settings))
    found = executable(feeds)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        np.testing.assert_allclose(found[name], values, *within, err_msg=name)
    return made


def kernels(graph: Graph, target: Target | None = None) -> list[str]:
    """Return the names of the kernels that a graph becomes, in order."""
    program = Lowering(graph, target or cpu(), vector_unit("avx2"), ANCHORS).run(silent)
    return [step.kernel.name for step in program.steps if isinstance(step, Call)]


def islands(made: Build) -> list[str]:
    return [note.node for note in made.islands]


def normal_feeds(graph: Graph, seed: int = 3) -> dict[str, np.ndarray]:
    """Return unit normals for every float32 input of a graph."""
    r = np.random.default_rng(seed)
    return {t.name: r.standard_normal(t.shape).astype(np.float32) for t in graph.inputs}
