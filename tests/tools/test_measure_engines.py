import contextlib
import sys
from pathlib import Path

import pytest

from tests.small_models import normal, two_layers
from tilewright.errors import UnusableInput
from tilewright.measurement import Samples
from tilewright.tools import measure_engines as measure
from tilewright.tools.engines.time_engine import time_round
from tilewright.tools.measure_engines import Contest, measure_engines


def test_each_engine_runs_in_a_process_of_its_own_and_they_take_turns(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    said: list[str] = []
    contest = measure_engines(
        {"tilewright": model, "onnxruntime": model},
        {"x": normal(1, 8)},
        threads=1,
        rounds=2,
        round_seconds=0.01,
        report=said.append,
    )
    found = contest.as_json()
    assert [row["engine"] for row in found["rows"]] == ["tilewright", "onnxruntime"]
    assert set(found["rows"][0]) >= {"min_ms", "median_ms", "threads", "spread"}
    assert list(found["ratio"]) == ["onnxruntime"]
    assert len(contest.rounds["tilewright"]) == 2
    assert said[-1] == "timing tilewright, onnxruntime: round 2 of 2"


def test_who_comes_first_in_a_round_changes_from_round_to_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Worker:
        version = ""

        def __init__(self, name: str) -> None:
            self.name = name

        def round(self, _: float) -> Samples:
            order.append(self.name)
            return Samples((1,))

    order: list[str] = []
    monkeypatch.setattr(
        measure, "_worker", lambda name, *_: contextlib.nullcontext(Worker(name))
    )
    models = {"tilewright": tmp_path, "onnxruntime": tmp_path}
    contest = measure_engines(models, {}, threads=1, rounds=3)
    ours, theirs = models
    assert order[2:] == [ours, theirs, theirs, ours, ours, theirs]  # behind the warm-up
    assert list(contest.rounds) == [ours, theirs]


def test_an_engine_that_cannot_load_the_model_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("hello")
    with pytest.raises(UnusableInput, match="cannot be loaded by onnxruntime"):
        measure_engines({"onnxruntime": tmp_path / "m.onnx"}, {"x": normal(1, 8)}, threads=1)


def test_an_engine_that_cannot_run_the_inputs_is_one_message(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    with pytest.raises(UnusableInput, match="cannot run these inputs"):
        measure_engines({"onnxruntime": model}, {"x": normal(1, 9)}, threads=1)


def test_an_engine_that_dies_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(UnusableInput, match='"onnxruntime" ended with exit code 1'):
        measure_engines({"onnxruntime": tmp_path}, {}, threads=1)


def test_a_round_lasts_as_long_as_asked_and_has_a_few_calls_at_least() -> None:
    ticks = iter(range(0, 10_000, 100))
    assert len(time_round(lambda: None, 1e-6, lambda: next(ticks))) == 10
    ticks = iter(range(0, 10_000, 100))
    assert len(time_round(lambda: None, 0, lambda: next(ticks))) == 2


def test_the_ratio_is_theirs_over_ours() -> None:
    rounds = {"tilewright": [Samples((2_000_000,))], "onnxruntime": [Samples((3_000_000,))]}
    assert Contest(rounds, 2).as_json()["ratio"] == {"onnxruntime": 1.5}


def rounds_of(*times: int) -> list[Samples]:
    return [Samples((time,)) for time in times]


def test_rounds_in_which_the_machine_changed_its_state_do_not_count() -> None:
    rounds = {"tilewright": rounds_of(10, 10, 10), "onnxruntime": rounds_of(20, 90, 20)}
    steady, changed = (0.5, 0.6), (0.5, 2.2)
    probes = {"tilewright": [steady] * 3, "onnxruntime": [steady, changed, steady]}
    assert Contest(rounds, 2, probes=probes).ratio("onnxruntime") == 2
    # A state of its own is one too.
    slow = [(2.1, 2.3)] * 3
    contest = Contest(rounds, 2, probes={"tilewright": slow, "onnxruntime": slow})
    assert contest.ratio("onnxruntime") == 2
    assert contest.as_json()["launch_probe_us"]["tilewright"] == [[2.1, 2.3]] * 3


def test_where_hardly_a_round_was_steady_all_of_them_count() -> None:
    rounds = {"tilewright": rounds_of(10, 10, 10), "onnxruntime": rounds_of(20, 30, 30)}
    probes = {"tilewright": [(0.5, 0.5)] * 3, "onnxruntime": [(0.5, 0.5), (0.5, 2), (2, 2)]}
    assert Contest(rounds, 2, probes=probes).ratio("onnxruntime") == 3


def test_the_machine_is_probed_around_every_round(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    contest = measure_engines(
        {"onnxruntime": model},
        {"x": normal(1, 8)},
        threads=2,
        rounds=2,
        round_seconds=0.01,
        probed=True,
    )
    assert len(contest.probes["onnxruntime"]) == 2
    # Microseconds: more than nothing, less than a busy machine takes to switch threads.
    assert all(0.01 < each < 1e5 for pair in contest.probes["onnxruntime"] for each in pair)


def test_one_engine_may_be_timed_on_several_models(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    contest = measure_engines(
        {"dense": model, "pruned": model},
        {"x": normal(1, 8)},
        threads=1,
        rounds=2,
        round_seconds=0.01,
        engine_of={"dense": "onnxruntime", "pruned": "onnxruntime"},
    )
    assert [len(contest.rounds[name]) for name in ("dense", "pruned")] == [2, 2]
    assert contest.versions["dense"] == contest.versions["pruned"]
