"""Tuning: of several ways to run a layer, the one that is known to be fastest is taken."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.builds import NEAR, cpu, graph_of, normal_feeds
from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import Build
from tilewright.targets.cpu import CpuBackend
from tilewright.timings import Timings, Tuning


@pytest.fixture
def graph() -> Graph:
    """A sparse layer at many positions, a window behind a layer, and a dense one at few."""
    sparse = normal(32, 24, 1, 1)
    for first in range(0, 32, 4):
        sparse[first : first + 4, (first // 4) % 2 :: 2] = 0
    return graph_of(
        """g (float[1,24,24,24] x) => (float[1,16] y) {
            a = Conv(x, w)  r = Relu(a)
            d = Conv <group = 32, pads = [1, 1, 1, 1]> (r, u)
            p = GlobalAveragePool(d)  f = Flatten(p)  y = Gemm <transB = 1> (f, v)
        }""",
        w=sparse,
        u=normal(32, 1, 3, 3),
        v=normal(16, 32),
    )


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    return Tuning(4, 60.0, 1, Timings(tmp_path / "timings.sqlite"))


def tuned_build(graph: Graph, folder: Path, tuning: Tuning) -> tuple[Build, list[str]]:
    """Build, check the answers, and return what was decided and what was told."""
    told: list[str] = []
    folder.mkdir()
    build = CpuBackend().build([graph], cpu(), folder, told.append, tuning)
    feeds = normal_feeds(graph)
    found = CpuBackend().load(folder, 1)(feeds)
    np.testing.assert_allclose(found["y"], oracle.run(graph, feeds)["y"], *NEAR)
    return build, told


def pretend(tuning: Tuning, microseconds: str, problem: str = "%") -> None:
    """Put times into the database, as if the ways of these problems had taken them."""
    with sqlite3.connect(tuning.timings.path) as database:
        database.execute(
            "UPDATE timings SET microseconds = ? WHERE problem LIKE ?", (microseconds, problem)
        )


def rows(tuning: Tuning) -> list[tuple[str, str]]:
    with sqlite3.connect(tuning.timings.path) as database:
        return database.execute("SELECT problem, ways FROM timings ORDER BY problem").fetchall()


def test_what_was_timed_is_not_timed_again_and_gives_the_same_files(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    first, told = tuned_build(graph, tmp_path / "a", tuning)
    assert any(text.startswith("tuning") for text in told)
    again, told = tuned_build(graph, tmp_path / "b", tuning)
    assert not any(text.startswith("tuning") for text in told)
    assert first == again
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        if name != "lib.so":  # linkers write the names of temporary files into it
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_way_that_is_known_to_be_fastest_is_taken(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    build, _ = tuned_build(graph, tmp_path / "a", tuning)
    pretend(tuning, "[9.0, 8.0, 1.0, 8.0]", "%32 x 24%")
    third = next(ways for problem, ways in rows(tuning) if "32 x 24" in problem).split('"')[5]
    build, _ = tuned_build(graph, tmp_path / "b", tuning)
    layer = build.layers[0]
    assert f"{layer.kernel.split(',')[0]} {layer.tile}" == third.split(",")[0]
    assert "measured 1 us, against 8 us" in layer.reason


def test_a_way_that_is_hardly_faster_than_the_estimate_is_not_taken(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    tuned_build(graph, tmp_path / "a", tuning)
    pretend(tuning, "[100.0, 99.0]")
    hardly, _ = tuned_build(graph, tmp_path / "b", tuning)
    folder = tmp_path / "c"
    folder.mkdir()
    estimated = CpuBackend().build([graph], cpu(), folder, lambda _: None)
    assert [(d.kernel, d.tile) for d in hardly.layers] == [
        (d.kernel, d.tile) for d in estimated.layers
    ]


def test_without_time_estimates_are_taken_and_nothing_is_kept(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    hasty = Tuning(4, 0.0, 1, tuning.timings)
    _, told = tuned_build(graph, tmp_path / "a", hasty)
    assert any("time for 1 of" in text for text in told)
    assert rows(tuning) == []


def test_every_site_of_the_model_is_kept_with_all_its_ways(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    tuned_build(graph, tmp_path / "a", tuning)
    problems = [problem for problem, _ in rows(tuning)]
    assert any(p.startswith("Conv+Relu float32 32 x 24 at 1 x 24 x 24") for p in problems)
    assert any(p.startswith("depthwise (3, 3)") for p in problems)
    assert any(p.startswith("Gemm float32 16 x 32 at 1,") for p in problems)


def test_kernels_that_this_cpu_cannot_run_are_not_timed(
    graph: Graph, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.cpu.cpu_flags", lambda: {"avx2"})
    with pytest.raises(UnusableInput, match="--tune 0"):
        CpuBackend().build([graph], cpu("avx512"), tmp_path, lambda _: None, tuning)


def test_layers_of_one_shape_with_other_ways_are_other_questions(
    tuning: Tuning, tmp_path: Path
) -> None:
    # A few zeros make skipping them a way, if not a good one.
    few, none = normal(24, 16, 1, 1), normal(24, 16, 1, 1)
    few[0, :3] = 0
    graph = graph_of(
        "g (float[1,16,20,20] x) => (float[1,24,20,20] y)"
        " { a = Conv(x, u) b = Conv(x, v) y = Add(a, b) }",
        u=few,
        v=none,
    )
    build, _ = tuned_build(graph, tmp_path / "a", tuning)
    assert len({ways for _, ways in rows(tuning)}) == 2
    assert len(build.layers) == 2


def test_times_of_fewer_ways_than_asked_for_are_taken_again(
    graph: Graph, tuning: Tuning, tmp_path: Path
) -> None:
    tuned_build(graph, tmp_path / "a", tuning)
    pretend(tuning, "[1.0]")
    _, told = tuned_build(graph, tmp_path / "b", tuning)
    assert any(text.startswith("tuning") for text in told)
    with sqlite3.connect(tuning.timings.path) as database:
        found = database.execute("SELECT ways, microseconds FROM timings").fetchall()
    for ways, times in found:
        assert len(json.loads(times)) == min(4, len(json.loads(ways)))
