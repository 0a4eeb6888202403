"""`tilewright search`, on a backend whose kernels take as long as they have weights."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal, small_model
from tests.tools.conftest import Cli, Ended, write_target
from tests.tools.fake_backends import Faithful
from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.frontends.arrays import read_arrays
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.measurement import Samples
from tilewright.passes.prune.choose_tiles import Choice
from tilewright.passes.prune.tile_errors import TileErrors
from tilewright.plan import Plan
from tilewright.tools import search_subject
from tilewright.tools.measure_engines import Contest
from tilewright.tools.search_job import parse_duration

ROOT = Path(__file__).parents[2]
PIPELINE = "prune-tiles{ends=true,smallest=1}"


def active(graph: Graph) -> int:
    return sum(int(np.count_nonzero(layer.matrix())) for layer in linear_layers(graph))


def times_of_weights(
    models: Mapping[str, Path], feeds: Mapping[str, np.ndarray], threads: int, **_: object
) -> Contest:
    """Claim a microsecond a weight that is not zero, and half a millisecond besides."""
    return Contest(
        {
            engine: [Samples((1000 * (500 + active(read_onnx(folder / "model.onnx"))),))]
            for engine, folder in models.items()
        },
        threads,
    )


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(search_subject, "measure_engines", times_of_weights)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three layers of 512, 1024 and 256 weights, and samples that need only some of them."""
    text = """g (float[1,16] x) => (float[1,8] y) {
        a = Gemm(x, w, b)  r = Relu(a)  c = Gemm(r, u, d)  s = Relu(c)  y = MatMul(s, v)
    }"""
    built = small_model(
        text,
        w=normal(16, 32),
        b=normal(32),
        u=normal(32, 32, seed=1),
        d=normal(32, seed=2),
        v=normal(32, 8, seed=3),
    )
    (tmp_path / "net.onnx").write_bytes(built.SerializeToString())
    x = normal(80, 8, seed=4) @ normal(8, 16, seed=5)
    np.savez(tmp_path / "c.npz", x=x)
    return tmp_path / "net.onnx"


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write_target(tmp_path, pipeline=PIPELINE)


def search(run: Cli, model: Path, target: str, *options: object) -> Ended:
    return run("search", model, "--target", target, "--calibration", "c.npz", *options)


def known(cache: Path) -> int:
    with sqlite3.connect(cache / "searches.sqlite") as database:
        (count,) = database.execute("SELECT COUNT(*) FROM findings").fetchone()
    return int(count)


def test_a_plan_within_a_budget_is_written_and_replayed_by_compile(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    # Dense is 0.5 + 1.792 ms.
    ended = search(run, model, target, "--latency-budget", "1.5ms", "--json")
    assert ended.code == 0, ended.err
    found = ended.json()
    assert found["met"]
    assert found["latency"]["dense"]["median_ms"] == 2.292
    assert found["estimated_latency_ms"] <= 1.5
    assert 0.9 * 1.5 < found["latency"]["median_ms"] <= 1.5
    assert found["written"] == "net.plan.json"
    plan = Plan.read(tmp_path / "net.plan.json")
    assert plan.levels == found["plan"]["levels"]
    ended = run(
        *("compile", model, "--target", target, "--calibration", "c.npz", "-o", "out.tw"),
        *("--plan", "net.plan.json", "--json"),
    )
    assert ended.code == 0, ended.err
    levels = {row["name"]: row["sparsity"] for row in found["layers"]}
    for row in ended.json()["layers"]:
        # Sixteen inputs at least: sparsity goes in steps of a sixteenth.
        assert row["density"] == pytest.approx(1 - levels[row["name"]], abs=1 / 32)
    compiled = active(read_onnx(tmp_path / "out.tw" / "model.onnx"))
    assert (500 + compiled) / 1000 == found["latency"]["median_ms"]
    assert {p.name for p in tmp_path.iterdir()} == {
        *("c.npz", "cache", "faithful.toml", "net.onnx", "net.plan.json", "out.tw"),
    }


def test_the_fastest_plan_at_a_floor_holds_it_on_samples_that_it_was_not_fitted_to(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    found = search(run, model, target, "--accuracy-floor", "0.9", "--json").json()
    assert found["met"]
    assert found["judged_samples"] == 20
    assert 0.9 <= found["agreement"] < 1
    assert found["latency"]["median_ms"] < found["latency"]["dense"]["median_ms"]
    # The same network, made here by hand.
    graph = read_onnx(model)
    calibration = Calibration.from_arrays(read_arrays(tmp_path / "c.npz"), graph.inputs)
    fitted, held = calibration.held_out(4)
    np.savez(tmp_path / "fitted.npz", x=np.concatenate([f["x"] for f in fitted.feeds()]))
    options = ("--calibration", "fitted.npz", "--plan", "net.plan.json", "-o", "out.tw")
    assert run("compile", model, "--target", target, *options).code == 0
    pruned = read_onnx(tmp_path / "out.tw" / "model.onnx")
    assert Answers(graph, held).agreement(pruned) == (
        found["agreement"],
        found["same_argmax"],
    )


def test_with_both_the_floor_holds_and_the_budget_is_tried(
    run: Cli, model: Path, target: str
) -> None:
    easy = ("--accuracy-floor", "0.5", "--latency-budget", "1.5ms", "--json")
    found = search(run, model, target, *easy).json()
    assert (found["met"], found["agreement"] >= 0.5) == (True, True)
    hard = ("--accuracy-floor", "0.999", "--latency-budget", "0.9ms", "--json")
    ended = search(run, model, target, *hard)
    assert ended.code == 1
    assert (ended.json()["met"], ended.json()["agreement"] >= 0.999) == (False, True)
    assert "the fastest that holds the floor takes" in ended.err


def test_a_budget_that_cannot_be_met_leaves_the_fastest_plan_and_exits_1(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    ended = search(run, model, target, "--latency-budget", "500us", "-o", "fast.json")
    assert ended.code == 1
    assert "--latency-budget 0.5ms cannot be had on this device: the fastest" in ended.err
    levels = Plan.read(tmp_path / "fast.json").levels
    assert [level["sparsity"] for level in levels.values()] == [0.9, 0.9, 0.9]


def test_a_machine_that_was_slow_at_first_costs_no_accuracy(
    run: Cli, model: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowness = iter([4])

    def drifting(
        models: Mapping[str, Path], feeds: Mapping[str, np.ndarray], threads: int, **_: object
    ) -> Contest:
        contest, times = times_of_weights(models, feeds, threads), next(slowness, 1)
        slow = {n: [Samples((times * s.samples_ns[0],))] for n, (s,) in contest.rounds.items()}
        return Contest(slow, threads)

    monkeypatch.setattr(search_subject, "measure_engines", drifting)
    # Dense kernels were seen to take 9.2 ms, but do take 2.3.
    found = search(run, model, target, "--latency-budget", "3ms", "--json").json()
    assert (found["met"], found["plan"]["levels"], found["agreement"]) == (True, {}, 1.0)
    assert found["latency"]["median_ms"] == 2.292


def test_the_table_has_a_row_for_each_layer(run: Cli, model: Path, target: str) -> None:
    out = search(run, model, target, "--latency-budget", "3ms").out.splitlines()
    assert out[0].split() == ["layer", "tile", "sparsity", "dense", "ms", "ms", "error"]
    assert [line.split()[1:] for line in out[1:4]] == [
        ["4x1", "0%", "0.512", "0.512", "0"],
        ["4x1", "0%", "1.024", "1.024", "0"],
        ["4x1", "0%", "0.256", "0.256", "0"],
    ]
    assert out[4].endswith("dense 2.292 ms, now 2.292 ms (estimated 2.292 ms)")
    assert "on 20 samples: 1.0000; same argmax 100.0%" in out[5]
    assert "Written: net.plan.json" in out[6]


# ---- what is known is not measured again ----


def test_the_same_question_measures_nothing_again(
    run: Cli, model: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--latency-budget", "1.5ms", "--accuracy-floor", "0.8", "--json")
    first = search(run, model, target, *options)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("this is known")

    with monkeypatch.context() as patched:
        patched.setattr(TileErrors, "of", forbidden)
        patched.setattr(Faithful, "steps", forbidden)
        patched.setattr(search_subject, "measure_engines", forbidden)
        patched.setattr(Answers, "agreement", forbidden)
        assert search(run, model, target, *options).out == first.out
        # Another seed is another question.
        assert search(run, model, target, *options, "--seed", 1).code == 2


def test_a_search_that_is_killed_while_it_writes_goes_on_from_there(
    run: Cli, model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--latency-budget", "1.5ms", "--json")
    program = """
import os, signal, sqlite3, sys
import tilewright.targets
from tests.tools.fake_backends import BACKENDS
from tilewright import database
from tilewright.tools.cli import main

tilewright.targets.BACKENDS = BACKENDS
left = 8

class Connection(sqlite3.Connection):
    def execute(self, sql, *values):
        global left
        done = super().execute(sql, *values)
        left -= sql.startswith("INSERT OR REPLACE INTO findings")
        if left == 0:  # the eighth row is written, and its transaction open
            os.kill(os.getpid(), signal.SIGKILL)
        return done

connect = sqlite3.connect
database.sqlite3.connect = lambda *a, **k: connect(*a, factory=Connection, **k)
main(sys.argv[1:])
"""
    killed = subprocess.run(
        [
            *(sys.executable, "-c", program, "search", model, "--target", target),
            *("--calibration", "c.npz", *options),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "net.plan.json").exists()
    asked: list[tuple[str, Choice]] = []
    measured = TileErrors.of

    def counted(self: TileErrors, layer: str, choice: Choice) -> float:
        asked.append((layer, choice))
        return measured(self, layer, choice)

    monkeypatch.setattr(TileErrors, "of", counted)
    resumed = search(run, model, target, *options)
    assert resumed.code == 0, resumed.err
    # Seven of three layers times six levels were known: the first layer's, and one more.
    assert len(asked) == 18 - 7
    assert known(tmp_path / "cache") > 18
    plan = (tmp_path / "net.plan.json").read_bytes()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "another"))
    assert search(run, model, target, *options).out == resumed.out
    assert (tmp_path / "net.plan.json").read_bytes() == plan
    assert len(asked) == 18 - 7 + 18


def test_an_interrupted_search_says_that_it_can_go_on(
    run: Cli, model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([0.5])

    def interrupted(*_: object) -> float:
        for first in answers:
            return first
        raise KeyboardInterrupt

    monkeypatch.setattr(TileErrors, "of", interrupted)
    ended = search(run, model, target, "--latency-budget", "1.5ms")
    assert ended.code == 130
    assert "the same command goes on from there" in ended.err
    assert not (tmp_path / "net.plan.json").exists()


def test_a_search_that_measured_nothing_does_not_say_that_it_can_go_on(
    run: Cli, model: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(TileErrors, "of", interrupted)
    ended = search(run, model, target, "--latency-budget", "1.5ms")
    assert ended.code == 130
    assert "goes on from there" not in ended.err


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("3ms", 3.0), ("0.003s", 3.0), ("3000us", 3.0), (" 2.5 ms", 2.5), (".5s", 500.0)],
)
def test_a_time_is_read_with_its_unit(text: str, milliseconds: float) -> None:
    assert parse_duration(text) == pytest.approx(milliseconds, rel=1e-12)


@pytest.mark.parametrize("text", ["3", "ms", "3min", "0ms", "-3ms", "1e3ms", "3 m s", "nan ms"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UnusableInput, match=r"with its unit, such as 3ms, 0.003s or 3000us"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "nothing to search for"),
        (("--latency-budget", "3"), "--latency-budget 3: write a time above zero"),
        (("--accuracy-floor", "98"), "Try --accuracy-floor 0.98."),
        (("--accuracy-floor", "1.5"), "above 0 and up to 1. Try --accuracy-floor 0.98."),
        (("--accuracy-floor", "0"), "--accuracy-floor 0: it says how well"),
        (("--accuracy-floor", "nan"), "--accuracy-floor nan: it says how well"),
        (("--latency-budget", "3ms", "--dim", "n=1,2"), "search runs at one size"),
        (("--latency-budget", "3ms", "--precision", "int3"), "has no kernels for it"),
        (("--latency-budget", "3ms", "-o", "none/p.json"), 'the folder "none" does not exist'),
        (("--latency-budget", "3ms", "--calibration", "few.npz"), "but only 3 are given"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_message(
    run: Cli, model: Path, target: str, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    np.savez(tmp_path / "few.npz", x=normal(3, 16))
    before = {path.name for path in tmp_path.iterdir()}
    ended = search(run, model, target, *options)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_without_data_or_layers_there_is_nothing_to_search(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    budget = ("--latency-budget", "3ms")
    bare = run("search", model, "--target", write_target(tmp_path), *budget)
    assert (bare.code, "none are given" in bare.err) == (2, True)
    # The default pipeline leaves the first, the last and tiny layers dense.
    ended = search(run, model, write_target(tmp_path), *budget)
    assert (ended.code, "no layer that may be pruned" in ended.err) == (2, True)
    ended = search(run, model, write_target(tmp_path, pipeline="fold-constants"), *budget)
    assert ended.code == 2
    assert "has no prune-tiles" in ended.err
    assert not (tmp_path / "cache").exists()


def test_a_plan_that_would_be_a_folder_is_refused_before_any_work(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    for place in (".", str(tmp_path)):
        ended = search(run, model, target, "--latency-budget", "1ms", "--output", place)
        assert (ended.code, "is a folder" in ended.err) == (2, True)
