"""The command `gate`, with made-up times: what it judges, writes and refuses."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.tools.conftest import Cli, Ended
from tests.tools.fake_backends import Faithful
from tilewright import artifact
from tilewright.errors import UnusableInput
from tilewright.gate import MOST_RUNS
from tilewright.measurement import Samples, Timer
from tilewright.tools import gate_subject, time_run
from tilewright.tools.measure_engines import Contest


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Say in microseconds how long an artifact's folder, or a file, takes. 100 if not said."""
    times: dict[str, float] = {}

    def measure(
        models: Mapping[str, Path], feeds: Mapping[str, np.ndarray], threads: int, **_: object
    ) -> Contest:
        taken = {
            side: [Samples((round(1000 * times.get(path.name, 100.0)),))] * 6
            for side, path in models.items()
        }
        return Contest(taken, threads)

    monkeypatch.setattr(time_run, "measure_engines", measure)
    return times


@pytest.fixture
def small(run: Cli, model: Path, target: str, speed: dict[str, float]) -> Path:
    """Compile an artifact with half of its tiles: its first layer keeps all."""
    spec = ("--pipeline", "prune-tiles{sparsity=0.5,ends=true,smallest=1}")
    ended = run("compile", model, "--target", target, *spec, "-o", "a.tw")
    assert ended.code == 0, ended.err
    return Path("a.tw")


@pytest.fixture
def large(run: Cli, model: Path, target: str, small: Path) -> Path:
    """Compile the same model without pruning, under another folder's name."""
    ended = run("compile", model, "--target", target, "--sparsity", "0", "-o", "b.tw")
    assert ended.code == 0, ended.err
    return Path("b.tw")


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says and seal it again, as if it had been compiled so."""
    manifest = artifact.read(folder)
    change(manifest)
    artifact.seal(folder, manifest)


def statuses(ended: Ended) -> dict[str, str]:
    return {check["name"]: check["status"] for check in ended.json()["checks"]}


def with_baseline(run: Cli, *artifacts: Path, more: tuple[object, ...] = ()) -> None:
    ended = run("gate", *artifacts, "--baseline", "base.json", "--update", *more)
    assert ended.code == 0, ended.err


# ---- against a baseline ----


def test_an_artifact_that_is_as_it_was_passes(run: Cli, small: Path) -> None:
    with_baseline(run, small)
    ended = run("gate", small, "--baseline", "base.json", "--json")
    assert (ended.code, ended.json()["passed"]) == (0, True)
    assert statuses(ended) == {
        "latency": "passed",
        "stored_bytes": "passed",
        "nonzero_parameters": "passed",
    }


def test_times_are_judged_as_ratios_to_the_reference_and_not_as_milliseconds(
    run: Cli, small: Path, speed: dict[str, float]
) -> None:
    speed.update({"a.tw": 100.0, "model.onnx": 250.0})
    with_baseline(run, small)
    speed.update({"a.tw": 300.0, "model.onnx": 750.0})  # a neighbour takes its share
    assert run("gate", small, "--baseline", "base.json").code == 0
    speed.update({"a.tw": 318.0})
    ended = run("gate", small, "--baseline", "base.json", "--json")
    assert ended.code == 1
    latency = ended.json()["checks"][0]
    assert (latency["status"], latency["unit"]) == ("failed", "x onnxruntime")
    assert latency["ratio"] == pytest.approx(1.06)
    assert (latency["before"], latency["now"]) == pytest.approx((0.4, 0.424))
    assert 'latency of "a.tw": +6.0%, band +6.0% to +6.0%, 16 runs; the budget is 5%' in (
        ended.err
    )


def test_a_budget_is_how_much_slower_it_may_be(
    run: Cli, small: Path, speed: dict[str, float]
) -> None:
    with_baseline(run, small)
    speed["a.tw"] = 106.0
    assert run("gate", small, "--baseline", "base.json", "--budget", "7%").code == 0
    assert run("gate", small, "--baseline", "base.json", "--budget", "5.5%").code == 1


def test_counts_are_exact_and_may_not_grow_at_all(run: Cli, small: Path) -> None:
    with_baseline(run, small)
    stored = json.loads(Path("base.json").read_text())
    stored["artifacts"]["a.tw"]["counts"]["nonzero_parameters"] -= 1
    Path("base.json").write_text(json.dumps(stored))
    ended = run("gate", small, "--baseline", "base.json")
    assert ended.code == 1
    assert 'nonzero_parameters of "a.tw"' in ended.err
    assert "the budget is 0%" in ended.err
    lenient = ("--count-budget", "2%")
    assert run("gate", small, "--baseline", "base.json", *lenient).code == 0


def test_every_count_that_a_backend_tells_is_judged_and_nothing_else_of_it(
    run: Cli, small: Path
) -> None:
    def tell(manifest: dict[str, Any]) -> None:
        manifest["details"] = {"calls": "9", "arena_bytes": "640", "cores": "4", "isa": "i"}
        manifest["estimated_cycles"] = {"value": 1e6, "model": "made up"}

    change_manifest(small, tell)
    with_baseline(run, small, more=("--no-latency",))
    counts = json.loads(Path("base.json").read_text())["artifacts"]["a.tw"]["counts"]
    told = {"calls": 9, "arena_bytes": 640, "estimated_cycles (made up)": 1e6}
    assert told.items() <= counts.items()
    assert "cores" not in counts
    change_manifest(small, lambda m: m["estimated_cycles"].update(value=1.1e6))
    ended = run("gate", small, "--baseline", "base.json", "--no-latency")
    assert (ended.code, "estimated_cycles (made up) of" in ended.err) == (1, True)


def test_cycles_that_another_model_estimates_are_told_and_not_judged(
    run: Cli, small: Path, large: Path
) -> None:
    for folder, value, by in ((small, 2e6, "Vela 6"), (large, 1e6, "Vela 5")):
        estimate = {"estimated_cycles": {"value": value, "model": by}}
        artifact.seal(folder, artifact.read(folder) | estimate)
    ended = run("gate", small, "--against", large, "--no-latency", "--json")
    found = {check["name"]: check["reason"] for check in ended.json()["checks"]}
    assert ended.code == 0
    assert found["estimated_cycles (Vela 5)"] == "there is such a figure only before"
    assert found["estimated_cycles (Vela 6)"] == "there is such a figure only now"


def test_a_count_that_is_new_or_gone_is_told_and_not_judged(run: Cli, small: Path) -> None:
    change_manifest(small, lambda m: m.update(details={"calls": "9"}))
    with_baseline(run, small)
    change_manifest(small, lambda m: m.update(details={"kernels": "9"}))
    found = statuses(run("gate", small, "--baseline", "base.json", "--json"))
    assert (found["calls"], found["kernels"]) == ("not judged", "not judged")


def test_what_does_not_run_on_this_machine_is_judged_by_counts_and_says_so(
    run: Cli, small: Path
) -> None:
    change_manifest(small, lambda m: m.update(device="qemu"))
    with_baseline(run, small)
    ended = run("gate", small, "--baseline", "base.json")
    assert ended.code == 0
    assert 'not judged: it runs on "qemu", not on this machine' in ended.out


def test_several_artifacts_have_an_entry_each(
    run: Cli, small: Path, large: Path, speed: dict[str, float]
) -> None:
    with_baseline(run, small, large)
    speed["b.tw"] = 200.0
    ended = run("gate", small, large, "--baseline", "base.json", "--json")
    assert ended.code == 1
    failed = [c for c in ended.json()["checks"] if c["status"] == "failed"]
    assert [(c["artifact"], c["name"]) for c in failed] == [("b.tw", "latency")]


def test_an_update_keeps_other_artifacts_other_machines_and_other_scores(
    run: Cli, small: Path, large: Path
) -> None:
    with_baseline(run, small, large)
    stored = json.loads(Path("base.json").read_text())
    entry = stored["artifacts"]["a.tw"]
    entry["timed"][0]["machine"]["cpu"] = "another"
    entry["scores"]["some-task"] = 0.5
    Path("base.json").write_text(json.dumps(stored))
    with_baseline(run, small)
    after = json.loads(Path("base.json").read_text())["artifacts"]
    assert after["b.tw"] == stored["artifacts"]["b.tw"]
    cpus = [timed["machine"]["cpu"] for timed in after["a.tw"]["timed"]]
    assert (cpus[0], len(cpus)) == ("another", 2)
    assert after["a.tw"]["scores"] == {"some-task": 0.5}
    with_baseline(run, small)
    assert json.loads(Path("base.json").read_text())["artifacts"] == after


def test_an_update_of_what_is_compiled_otherwise_forgets_what_it_was(
    run: Cli, small: Path
) -> None:
    with_baseline(run, small)
    change_manifest(small, lambda m: m.update(precision="int8"))
    with_baseline(run, small, more=("--no-latency",))
    entry = json.loads(Path("base.json").read_text())["artifacts"]["a.tw"]
    assert (entry["identity"]["precision"], entry["timed"]) == ("int8", [])


# ---- against another artifact ----


def test_two_artifacts_are_timed_in_turns(
    run: Cli, small: Path, large: Path, speed: dict[str, float]
) -> None:
    ended = run("gate", small, "--against", large, "--json")
    assert (ended.code, ended.json()["checks"][0]["unit"]) == (0, "x b.tw")
    speed["a.tw"] = 105.1
    ended = run("gate", small, "--against", large)
    assert ended.code == 1
    assert "+5.1%" in ended.err


def test_the_larger_of_two_artifacts_fails_by_its_counts(
    run: Cli, small: Path, large: Path
) -> None:
    found = statuses(run("gate", large, "--against", small, "--json"))
    assert found["latency"] == "passed"
    assert found["nonzero_parameters"] == "failed"
    assert run("gate", large, "--against", small, "--count-budget", "200%").code == 0


def test_artifacts_of_two_targets_or_models_are_not_compared(
    run: Cli, small: Path, large: Path
) -> None:
    change_manifest(large, lambda m: m.update(target="another"))
    ended = run("gate", small, "--against", large, "--no-latency")
    assert ended.code == 2
    assert "are no two forms of one model for one target" in ended.err


def test_artifacts_of_one_device_beside_this_machine_are_timed_there(
    run: Cli, small: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"a.tw": 1060, "b.tw": 1000}
    on: list[str] = []

    def timer(_: Faithful, folder: Path, feeds: object, threads: int, device: str) -> Timer:
        on.append(device)
        return lambda: Samples((times[folder.name],))

    monkeypatch.setattr(Faithful, "find_device", lambda _, asked: str(asked))
    monkeypatch.setattr(Faithful, "timer", timer)
    for folder in (small, large):
        change_manifest(folder, lambda m: m.update(device="board"))
    ended = run("gate", small, "--against", large)
    assert (ended.code, set(on)) == (1, {"board"})
    assert "+6.0%" in ended.err
    times["a.tw"] = 1000
    assert run("gate", small, "--against", large).code == 0


@pytest.mark.parametrize("device", ["qemu", "board", "gone"])
def test_where_two_artifacts_cannot_be_timed_the_counts_are_judged(
    run: Cli, small: Path, large: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def find(_: Faithful, asked: str) -> str:
        if asked == "gone":
            raise UnusableInput("there is no gone")
        return asked

    monkeypatch.setattr(Faithful, "find_device", find)
    monkeypatch.setattr(Faithful, "timer", lambda *_: None)
    change_manifest(small, lambda m: m.update(device=device))
    if device != "board":
        change_manifest(large, lambda m: m.update(device=device))
    reason = {
        "qemu": '"qemu" is not the device itself',
        "board": 'one runs on "board", the other on "host"',
        "gone": "there is no gone",
    }
    ended = run("gate", small, "--against", large)
    assert (ended.code, f"not judged: {reason[device]}" in ended.out) == (0, True)


def test_an_artifact_of_an_older_version_that_names_no_device_is_timed_here(
    run: Cli, small: Path, large: Path
) -> None:
    change_manifest(large, lambda m: m.pop("device"))
    found = statuses(run("gate", small, "--against", large, "--json"))
    assert found["latency"] == "passed"


def test_another_device_may_be_asked_for_than_artifacts_were_compiled_for(
    run: Cli, small: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on: list[str] = []

    def timer(_: Faithful, folder: Path, feeds: object, threads: int, device: str) -> Timer:
        on.append(device)
        return lambda: Samples((1000,))

    monkeypatch.setattr(Faithful, "find_device", lambda _, asked: str(asked))
    monkeypatch.setattr(Faithful, "timer", timer)
    for folder in (small, large):
        change_manifest(folder, lambda m: m.update(device="qemu"))
    fleet = ("--tracker", "10.0.0.2:9190", "--key", "pi4")
    assert run("gate", small, "--against", large, *fleet).code == 0
    assert set(on) == {"tracker://10.0.0.2:9190/pi4"}


def test_a_device_that_no_artifact_runs_on_is_refused(
    run: Cli, small: Path, large: Path
) -> None:
    ended = run("gate", small, "--against", large, "--device", "qemu")
    refused(ended, "--device qemu: nothing here can be run there", 'a.tw for "host"')
    change_manifest(small, lambda m: m.update(device="board"))
    refused(run("gate", small, "--against", large, "--device", "no"), "--device no: there is")


# ---- scores ----


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Say which score an artifact's folder has, on any task."""
    known: dict[str, float] = {}
    monkeypatch.setattr(
        gate_subject,
        "evaluate_task",
        lambda model, task, **_: {"value": known[Path(model).name]},
    )
    return known


@pytest.mark.parametrize(
    ("task", "before", "now", "status"),
    [
        ("ocr-exact", 0.90, 0.90, "passed"),
        ("ocr-exact", 0.90, 0.892, "passed"),  # a loss of 0.9 %
        ("ocr-exact", 0.90, 0.88, "failed"),
        ("ocr-exact", 0.90, 0.99, "passed"),
        ("ocr-exact", 0.90, float("nan"), "failed"),
        ("perplexity", 20.0, 19.0, "passed"),
        ("perplexity", 20.0, 20.5, "failed"),
    ],
)
def test_a_score_may_lose_its_own_budget(
    run: Cli,
    small: Path,
    large: Path,
    scores: dict[str, float],
    task: str,
    before: float,
    now: float,
    status: str,
) -> None:
    scores.update({"a.tw": now, "b.tw": before})
    ended = run("gate", small, "--against", large, "--task", task, "--no-latency", "--json")
    assert statuses(ended)[task] == status
    assert "NaN" not in ended.out
    scores["a.tw"] = before
    with_baseline(run, small, more=("--task", task, "--no-latency"))
    scores["a.tw"] = now
    shared = ("--baseline", "base.json", "--task", task, "--no-latency", "--json")
    assert statuses(run("gate", small, *shared))[task] == status


@pytest.mark.parametrize(
    ("latency", "option", "scored", "device", "unit"),
    [
        ({"median_ms": 1.0}, (), "a.tw", "board", "exact"),
        (None, (), "a.tw/model.onnx", None, "exact of model.onnx"),
        (None, ("--device", "pi"), "a.tw", "pi", "exact"),
    ],
)
def test_a_task_is_scored_on_the_device_or_on_model_onnx_where_it_is_emulated(
    run: Cli,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    latency: object,
    option: tuple[str, ...],
    scored: str,
    device: str | None,
    unit: str,
) -> None:
    calls = []

    def evaluate(model: str, task: str, **options: Any) -> dict[str, float]:
        calls.append((model, options["device"]))
        return {"value": 0.5}

    monkeypatch.setattr(gate_subject, "evaluate_task", evaluate)
    monkeypatch.setattr(Faithful, "find_device", lambda _, asked: str(asked))
    change_manifest(small, lambda m: m.update(device="board", latency=latency))
    shared = ("gate", small, "--against", small, "--no-latency", *option, "--json")
    found = run(*shared, "--task", "ocr-exact").json()["checks"]
    assert calls == [(scored, device)] * 2
    assert [c["unit"] for c in found if c["name"] == "ocr-exact"] == [unit]


def test_a_score_that_the_baseline_lacks_or_that_is_no_number_is_refused(
    run: Cli, small: Path, scores: dict[str, float]
) -> None:
    with_baseline(run, small)
    before = Path("base.json").read_bytes()
    ended = run("gate", small, "--baseline", "base.json", "--task", "ocr-exact")
    refused(ended, 'it has no score of "a.tw" on ocr-exact', "--update")
    scores["a.tw"] = float("nan")
    ended = run("gate", small, "--baseline", "base.json", "--task", "ocr-exact", "--update")
    refused(ended, 'the score of "a.tw" on ocr-exact is nan')
    assert Path("base.json").read_bytes() == before


# ---- reports ----


def test_reports_say_what_failed(
    run: Cli, small: Path, large: Path, tmp_path: Path, speed: dict[str, float]
) -> None:
    speed["b.tw"] = 200.0
    files = ("--markdown", "g.md", "--junit", "g.xml", "--json", "g.json")
    ended = run("gate", large, "--against", small, *files)
    assert ended.code == 1
    assert "failed: slower by more than the budget" in ended.out
    assert json.loads((tmp_path / "g.json").read_text())["passed"] is False
    table = (tmp_path / "g.md").read_text().splitlines()
    assert table[0] == "### Latency gate: failed"
    latency = table[6].split(" | ")
    assert latency[:5] == ["| b.tw", "latency", "1 x a.tw", "2 x a.tw", "+100.0%"]
    assert {line.count(" | ") for line in table[6:]} == {7}
    (suite,) = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert (suite.get("name"), suite.get("failures")) == ("b.tw", "2")
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures["latency"] is not None
    assert "+100.0%" in str(failures["latency"].text)


def test_what_is_not_settled_is_skipped_in_junit_and_does_not_fail(
    run: Cli, small: Path, large: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Whichever goes first is slower, and who goes first alternates.
    taken = iter([1300, 1000] * MOST_RUNS)

    def measure(models: Mapping[str, Path], *_: object, **__: object) -> Contest:
        return Contest({side: [Samples((next(taken),))] for side in models}, 1)

    monkeypatch.setattr(time_run, "measure_engines", measure)
    ended = run("gate", small, "--against", large, "--junit", "g.xml")
    assert ended.code == 0
    assert "undecided: the noise hides a slow-down by the budget" in ended.out
    assert "3 checks: 2 passed, 1 undecided. Where it is undecided, a quiet" in ended.out
    (suite,) = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert (suite.get("skipped"), suite.get("failures")) == ("1", "0")


def test_the_name_of_a_folder_may_be_anything(run: Cli, small: Path, tmp_path: Path) -> None:
    os.rename(small, "a|<b>\x07.tw")
    files = ("--markdown", "g.md", "--junit", "g.xml", "--no-latency")
    ended = run("gate", "a|<b>\x07.tw", "--against", "a|<b>\x07.tw", *files)
    assert ended.code == 0, ended.err
    assert "| a\\|<b>?.tw | latency |" in (tmp_path / "g.md").read_text()
    (suite,) = ElementTree.parse(tmp_path / "g.xml").getroot()
    assert suite.get("name") == "a|<b>?.tw"


def test_json_alone_is_printed_and_with_a_file_is_written(
    run: Cli, small: Path, tmp_path: Path
) -> None:
    shared = ("gate", small, "--against", small, "--no-latency")
    printed = run(*shared, "--json")
    written = run(*shared, "--json", "g.json")
    assert "checks" in written.out
    assert json.loads((tmp_path / "g.json").read_text()) == printed.json()


def test_the_history_keeps_every_check(run: Cli, small: Path, tmp_path: Path) -> None:
    shared = ("gate", small, "--against", small, "--history", "h.sqlite", "--no-latency")
    assert run(*shared, "--label", "one").code == 0
    assert run(*shared, "--label", "two").code == 0
    from tilewright.tools.gate_history import History

    rows = History(tmp_path / "h.sqlite").rows()
    assert [row["label"] for row in rows] == ["one"] * 3 + ["two"] * 3
    assert {row["name"] for row in rows} == {"latency", "stored_bytes", "nonzero_parameters"}
    assert rows[1]["now"] == rows[1]["before"] > 0


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_the_history_is_plotted_into_one_file_that_needs_no_network(
    run: Cli, small: Path, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("altair", reason="the extra [plots] is not installed")
    pytest.importorskip("vl_convert", reason="the extra [plots] is not installed")
    shared = ("gate", small, "--against", small, "--history", "h.sqlite")
    ended = run(*shared, "--plot", f"trend.{kind}")
    assert ended.code == 0, ended.err
    text = (tmp_path / f"trend.{kind}").read_text()
    for shown in ("nonzero_parameters", "stored_bytes", "latency x a.tw"):
        assert shown in text
    assert "<script src=" not in text


# ---- what is refused ----


def refused(ended: Ended, *parts: str) -> None:
    assert (ended.code, ended.out) == (2, ""), ended
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in ended.err


def test_a_baseline_that_does_not_know_an_artifact_says_how_to_add_it(
    run: Cli, small: Path, large: Path
) -> None:
    with_baseline(run, small)
    ended = run("gate", small, large, "--baseline", "base.json")
    refused(ended, 'it has no artifact "b.tw" (it has a.tw)', "--update")
    refused(run("gate", small, "--baseline", "none.json"), "does not exist", "--update")


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("cpu", "Another CPU", "cpu Another CPU there"),
        ("onnxruntime", "1.0", "onnxruntime 1.0 there"),
        ("threads", 99, "threads 99 there"),
    ],
)
def test_times_of_another_machine_or_onnxruntime_are_not_compared(
    run: Cli, small: Path, key: str, value: object, part: str
) -> None:
    with_baseline(run, small)
    stored = json.loads(Path("base.json").read_text())
    stored["artifacts"]["a.tw"]["timed"][0]["machine"][key] = value
    Path("base.json").write_text(json.dumps(stored))
    ended = run("gate", small, "--baseline", "base.json")
    refused(ended, "cannot be compared", part, "--update", "--against", "--no-latency")
    assert run("gate", small, "--baseline", "base.json", "--no-latency").code == 0


def test_an_entry_of_something_else_is_not_compared(run: Cli, small: Path) -> None:
    with_baseline(run, small)
    change_manifest(small, lambda m: m.update(target="arm-edge"))
    ended = run("gate", small, "--baseline", "base.json")
    refused(ended, "target test, and here target arm-edge", "--update")


def entry(**changed: object) -> str:
    whole: dict[str, object] = {"identity": {}, "counts": {}, "scores": {}, "timed": []}
    return json.dumps({"format": 1, "artifacts": {"a.tw": whole | changed}})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not JSON text"),
        ("\udc80", "is not JSON text"),
        ("[" * 100_000, "is not JSON text"),
        ("[]", 'has no table "artifacts"'),
        ('{"artifacts": 3}', 'has no table "artifacts"'),
        ('{"artifacts": {}}', "its format is None"),
        ('{"format": 2, "artifacts": {}}', "its format is 2"),
        ('{"format": 1, "artifacts": {"a.tw": 1}}', '"a.tw" is 1, not a table'),
        ('{"format": 1, "artifacts": {"a.tw": {}}}', 'does not say which "identity"'),
        (entry(counts=[]), '"counts" of "a.tw" is []'),
        (entry(counts={"calls": "9"}), "\"calls\" in counts of a.tw is '9'"),
        (entry(counts={"calls": -1}), "is -1, not a number"),
        (entry(counts={"calls": True}), "is True, not a number"),
        (entry(counts={"calls": 10**400}), "not a number"),
        (entry(scores={"t": float("nan")}), "is nan, not a number"),
        (entry(timed={}), '"timed" of "a.tw" is not a list'),
        (entry(timed=[{}]), 'does not say on which "machine"'),
        (entry(timed=[{"machine": {}, "ratios": [1.0]}]), "are not a list of 24"),
        (entry(timed=[{"machine": {}, "ratios": [0.0] * 24}]), 'a ratio of "a.tw" is 0'),
    ],
)
@pytest.mark.parametrize("option", [(), ("--update",)])
def test_a_baseline_that_is_damaged_is_one_message_and_stays(
    run: Cli, small: Path, text: str, part: str, option: tuple[str, ...]
) -> None:
    Path("base.json").write_text(text, errors="surrogateescape")
    before = Path("base.json").read_bytes()
    refused(run("gate", small, "--baseline", "base.json", *option), part)
    assert Path("base.json").read_bytes() == before


def test_a_damaged_artifact_is_neither_judged_nor_made_the_baseline(
    run: Cli, small: Path, large: Path
) -> None:
    with_baseline(run, small)
    before = Path("base.json").read_bytes()
    with (large / "weights.bin").open("r+b") as stream:
        stream.write(b"\xff")
    for option in ((), ("--update",)):
        ended = run("gate", small, large, "--baseline", "base.json", *option)
        refused(ended, "weights.bin", "was changed")
    assert Path("base.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "give either --baseline FILE"),
        (("--baseline", "x.json", "--against", "a.tw"), "give either --baseline FILE"),
        (("--against", "a.tw", "--update"), "--update writes the file of --baseline"),
        (("--against", "a.tw", "--budget", "5"), "--budget 5: write by how many percent"),
        (("--against", "a.tw", "--budget", "-5%"), "--budget -5%: write by how many"),
        (("--against", "a.tw", "--budget", "nan%"), "--budget nan%: write by how many"),
        (("--against", "a.tw", "--budget", "9999%"), "from 0% to 1000%"),
        (("--against", "a.tw", "--budget", "0%"), "some slow-down must be allowed"),
        (("--against", "a.tw", "--plot", "p.svg"), "it draws the file of --history"),
        (("--against", "a.tw", "--history", "h", "--plot", "p.png"), "may end in .html or"),
        (("--against", "a.tw", "--markdown", "x", "--junit", "x"), "are the same"),
        (("--against", "a.tw", "--markdown", "no/x"), 'the folder "no" does not exist'),
        (("--against", "a.tw", "--json", "no/x"), 'the folder "no" does not exist'),
        (("--against", "a.tw", "--json", "a.tw"), "is a folder"),
        (("--against", "a.tw", "--junit", "a.tw"), "is a folder"),
        (("--against", "a.tw", "--task", "ocr"), 'no task "ocr"'),
        (("--against", "none.tw"), '"none.tw" does not exist'),
        (("--against", "a.tw", "--history", "no.sqlite"), "cannot be used"),
        (("--baseline", "x.json", "--update", "--history", "h"), "judges nothing"),
    ],
)
def test_wrong_use_is_one_message_before_anything_is_timed(
    run: Cli,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    part: str,
) -> None:
    def measure(*_: object, **__: object) -> Contest:
        raise AssertionError("it was timed")

    monkeypatch.setattr(time_run, "measure_engines", measure)
    Path("no.sqlite").write_bytes(b"damaged" * 200)
    before = set(os.listdir())
    refused(run("gate", small, *options), part)
    assert set(os.listdir()) - before <= {"h"}


@pytest.mark.parametrize("option", ["--markdown", "--junit", "--json", "--baseline"])
def test_a_device_or_a_pipe_is_not_replaced_and_the_option_is_named(
    run: Cli, small: Path, option: str
) -> None:
    os.mkfifo("pipe")
    what = ("--update",) if option == "--baseline" else ("--against", small)
    shared = ("gate", small, "--no-latency", *what)
    ended = run(*shared, option, "pipe")
    refused(ended, '"pipe" is a device or a pipe', f"give {option} the name of a file")
    assert Path("pipe").is_fifo()
    refused(run(*shared, option, "no/x"), 'the folder "no"', f"another place with {option}.")


def test_two_names_of_one_file_are_the_same(run: Cli, small: Path) -> None:
    Path("link").symlink_to("table.md")
    ended = run("gate", small, "--against", small, "--markdown", "table.md", "--junit", "link")
    refused(ended, "two of the files to write are the same")


def test_two_artifacts_of_one_name_are_refused(run: Cli, small: Path) -> None:
    os.mkdir("other")
    os.rename(small, "other/a.tw")
    ended = run("gate", "a.tw", "other/a.tw", "--baseline", "x.json", "--update")
    refused(ended, 'two artifacts are called "a.tw"')
    ended = run("gate", "a.tw", "b.tw", "--against", "c.tw")
    refused(ended, "--against takes one artifact, and 2 are given")


def test_a_plot_without_the_packages_for_it_says_what_to_install(
    run: Cli, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    ended = run("gate", small, "--against", small, "--history", "h", "--plot", "p.svg")
    refused(ended, "pip install 'tilewright[plots]'")
