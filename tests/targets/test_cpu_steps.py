"""A build that is timed step by step: every node in some step, the same inputs each time."""

from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.builds import cpu, graph_of, normal_feeds
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.targets import cpu_steps
from tilewright.targets.cpu import CpuBackend
from tilewright.targets.cpu_program import CpuProgram


@pytest.fixture
def graph() -> Graph:
    """Two layers, a node that onnxruntime runs, and a table that `i` picks from."""
    return graph_of(
        """g (float[1,24] x, int64[1] i) => (float[1,16] y) {
            a = MatMul(x, w)  r = Relu(a)  d = Det(q)  s = Mul(r, d)
            t = Gather(table, i)  u = Add(s, t)  y = MatMul(u, v)
        }""",
        w=normal(24, 32),
        v=normal(32, 16),
        q=np.eye(3, dtype=np.float32),
        table=normal(4, 32),
    )


def test_every_layer_is_in_a_step_and_each_run_starts_from_the_same_inputs(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[CpuProgram] = []

    def load(folder: Path, threads: int) -> CpuProgram:
        loaded.append(CpuProgram(folder, threads))
        return loaded[0]

    monkeypatch.setattr(cpu_steps, "CpuProgram", load)
    feeds = {**normal_feeds(graph), "i": np.array([3])}
    steps = CpuBackend().steps(graph, cpu(), tmp_path, feeds, 1)
    named = [name for nodes in steps.nodes for name in nodes]
    layers = [node.name for node in graph.nodes if node.op == "MatMul"]
    assert set(layers) <= set(named)
    assert len(steps.time()) == len(steps.nodes) >= 3
    expected = loaded[0](feeds)["y"].copy()
    for _ in range(2):
        # Whatever a run left in the arena, the next one reads the inputs anew.
        loaded[0]({"x": 0 * feeds["x"], "i": np.array([0])})
        steps.time()
        found = loaded[0]._latest.answers.copies()["y"]
        np.testing.assert_array_equal(found, expected)


def test_kernels_that_this_cpu_cannot_run_are_not_timed(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.cpu.cpu_flags", lambda: {"avx2"})
    with pytest.raises(UnusableInput, match="cannot be measured here"):
        CpuBackend().steps(graph, cpu("avx512"), tmp_path, normal_feeds(graph), 1)
