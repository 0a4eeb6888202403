import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.small_models import normal, open_batch, small_graph, small_model, two_layers
from tests.tools.conftest import Cli, Ended, write_target
from tests.tools.fake_backends import Faithful
from tilewright import artifact
from tilewright.compare import AllValues
from tilewright.graph import Graph
from tilewright.tools import compile_model


def assert_refused(ended: Ended, *parts: str) -> None:
    """Exit 2, one message that holds these parts, no traceback, nothing on stdout."""
    assert ended.code == 2, ended
    assert ended.out == ""
    message = ended.err.partition("tilewright: ")[2] or ended.err
    for part in parts:
        assert part in message
    assert "Traceback" not in ended.err


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- what works ----


def test_compile_writes_an_artifact_and_prints_what_it_brought(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    ended = run("compile", model, "--target", target)
    assert ended.code == 0, ended.err
    assert "latency, median" in ended.out
    assert "outputs agree with model.onnx and the original under onnxruntime" in ended.out
    assert left_in(tmp_path / "model.faithful.tw") == {
        "manifest.json",
        "model.onnx",
        "plan.json",
        "report.html",
        "trace.json",
        "weights.bin",
    }
    assert left_in(tmp_path) == {"model.onnx", "faithful.toml", "model.faithful.tw"}


def test_json_is_one_object_with_the_keys_that_others_rely_on(
    run: Cli, model: Path, target: str
) -> None:
    found = run("compile", model, "--target", target, "--sparsity", "0.5", "--json").json()
    assert found["artifact"] == "model.faithful.tw"
    assert set(found["seconds"]) >= {"read", "passes", "build", "verify"}
    assert found["pipeline"] == "prune-tiles{sparsity=0.5}"
    assert found["parameters"]["dense"] == 208
    assert set(found) >= {
        *("model_sha256", "tilewright", "target", "plan", "sparsity", "bytes", "layers"),
        *("islands", "notes", "verified", "latency"),
    }
    assert set(found["verified"]) >= {"max_abs_error", "max_rel_error", "samples"}
    assert set(found["latency"]) >= {"min_ms", "median_ms", "device"}


def test_the_bytes_of_pruned_layers_are_counted_apart(
    run: Cli, model: Path, target: str
) -> None:
    pruned = "prune-tiles{sparsity=0.5,ends=true,smallest=100}"
    options = ("--target", target, "--pipeline", pruned, "--json")
    size = run("compile", model, *options).json()["bytes"]
    # The first layer has 8 x 16 weights; the second, with 16 x 4, is too small to be pruned.
    assert size["pruned_layers"] == {"dense": 512, "stored": 512}
    dense = run("compile", model, "--target", target, "--sparsity", "0", "--json").json()
    assert dense["bytes"]["pruned_layers"] == {"dense": 0, "stored": 0}


def test_a_layer_that_only_folding_shows_is_not_called_pruned_for_the_zeros_it_had(
    run: Cli, tmp_path: Path, target: str
) -> None:
    text = """g (float[1,16] x) => (float[1,8] y) {
        h = MatMul(x, w)  v = Transpose<perm=[1,0]>(u)  y = MatMul(h, v)
    }"""
    weights = normal(8, 16)
    weights[:4] = 0
    model = small_graph(text, w=normal(16, 16), u=weights)
    model.save(tmp_path / "folded.onnx")
    spec = "fold-constants,prune-tiles{sparsity=0.5,ends=true,smallest=200}"
    shared = ("compile", "folded.onnx", "--target", target)
    found = run(*shared, "--pipeline", spec, "--json").json()
    assert [len(found["layers"]), found["layers"][1]["density"]] == [2, 0.5]
    assert list(found["plan"]["levels"]) == [found["layers"][0]["name"]]
    assert found["bytes"]["pruned_layers"]["dense"] == 4 * 16 * 16


def test_the_same_inputs_give_the_same_bytes(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "c.npz", x=normal(16, 8))
    spec = "prune-tiles{ends=true,smallest=1}"
    for name in ("a.tw", "b.tw"):
        ended = run(
            *("compile", model, "--target", target, "--pipeline", spec, "--sparsity", "0.5"),
            *("--calibration", "c.npz", "-o", name),
        )
        assert ended.code == 0, ended.err
    for file in ("model.onnx", "plan.json", "weights.bin"):
        a, b = (tmp_path / name / file for name in ("a.tw", "b.tw"))
        assert a.read_bytes() == b.read_bytes()
    assert '"sparsity": 0.5' in (tmp_path / "a.tw" / "plan.json").read_text()


@pytest.mark.parametrize("option", ["sparsity=0.5", "tile=2:4"])
def test_a_plan_that_was_written_is_replayed_bit_for_bit(
    run: Cli, model: Path, target: str, tmp_path: Path, option: str
) -> None:
    np.savez(tmp_path / "c.npz", x=normal(16, 8))
    shared = ("compile", model, "--target", target, "--calibration", "c.npz")
    spec = f"prune-tiles{{{option},ends=true,smallest=1}}"
    assert run(*shared, "--pipeline", spec, "-o", "a.tw").code == 0
    assert run(*shared, "--plan", "a.tw/plan.json", "-o", "b.tw").code == 0
    for file in ("model.onnx", "plan.json"):
        assert (tmp_path / "a.tw" / file).read_bytes() == (
            tmp_path / "b.tw" / file
        ).read_bytes()


def test_a_plan_takes_the_same_channels_again(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "c.npz", x=normal(16, 8))
    shared = ("compile", model, "--target", target, "--calibration", "c.npz")
    step = "prune-channels{sparsity=0.3,ends=true,smallest=1,multiple=1}"
    assert run(*shared, "--pipeline", step, "-o", "a.tw").code == 0
    plan = json.loads((tmp_path / "a.tw" / "plan.json").read_text())
    (share,) = plan["levels"].values()
    assert share == {"channels": 0.3125}  # 5 of 16
    alone = ("--pipeline", "prune-channels")
    for given in ((), alone):
        ended = run(*shared, *given, "--plan", "a.tw/plan.json", "-o", "b.tw")
        assert ended.code == 0, ended.err
        for file in ("model.onnx", "plan.json"):
            assert (tmp_path / "a.tw" / file).read_bytes() == (
                tmp_path / "b.tw" / file
            ).read_bytes()


def test_channels_of_a_plan_go_before_the_tiles_of_what_is_left(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    levels = '{"levels": {"Gemm_2": {"channels": 0.5, "sparsity": 0.5, "tile": "4x1"}}}'
    (tmp_path / "p.json").write_text(levels)
    found = run("compile", model, "--target", target, "--plan", "p.json", "--json").json()
    assert found["pipeline"] == "prune-channels,prune-tiles"
    layer = found["layers"][1]
    assert (layer["name"], layer["shape"][:2], layer["density"]) == ("Gemm_2", [4, 8], 0.5)


@pytest.mark.parametrize(
    ("pipeline", "level", "parts"),
    [
        ("prune-tiles", {"channels": 0.5}, ("channels of Gemm_2", "prune-channels")),
        ("prune-channels", {"sparsity": 0.5}, ("of Gemm_2", "prune-tiles or prune-gradually")),
        ("prune-channels,match-tiles", {"tile": "2:4"}, ("of Gemm_2", "prune-tiles or")),
        ("", {"channels": 1.5}, ('channels of "Gemm_2" is 1.5, not a number from 0',)),
        ("", {"channels": "0.25|0|0"}, ("'0.25|0|0', not one share for each", "(16)")),
    ],
)
def test_a_level_that_would_have_no_effect_or_makes_no_sense_is_refused(
    run: Cli,
    model: Path,
    target: str,
    tmp_path: Path,
    pipeline: str,
    level: dict[str, object],
    parts: tuple[str, ...],
) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"levels": {"Gemm_2": level}}))
    given = ("--plan", "p.json", *(("--pipeline", pipeline) if pipeline else ()))
    assert_refused(run("compile", model, "--target", target, *given), *parts)


def test_the_trace_and_the_report_say_which_channels_went(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    step = "prune-channels{sparsity=0.5,ends=true,smallest=1,multiple=1}"
    spec = ("--target", target, "--pipeline", step, "-o", "a.tw")
    assert run("compile", model, *spec).code == 0
    (taken,) = json.loads((tmp_path / "a.tw" / "trace.json").read_text())["steps"]
    (first,), (second,) = (taken["removed"][0][key] for key in ("writers", "readers"))
    assert (taken["removed"][0]["before"], taken["removed"][0]["after"]) == (16, 8)
    row = f"<td>{first}</td><td>{second}</td><td>16</td><td>8</td>"
    assert row in (tmp_path / "a.tw" / "report.html").read_text()


def test_without_sparsity_nothing_is_pruned(run: Cli, model: Path, target: str) -> None:
    assert run("compile", model, "--target", target, "--json").json()["pipeline"] == ""
    zero = run("compile", model, "--target", target, "--sparsity", "0", "--json")
    assert zero.json()["pipeline"] == ""


def test_a_flag_overrules_the_sparsity_of_the_targets_own_pipeline(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    target = write_target(tmp_path, pipeline="prune-tiles{sparsity=0.4}")
    ended = run("compile", model, "--target", target, "--sparsity", "0.6", "--json")
    assert ended.json()["pipeline"] == "prune-tiles{sparsity=0.6}"


def test_threads_without_cores_are_told(run: Cli, model: Path, target: str) -> None:
    ended = run("compile", model, "--target", target, "--threads", 5000)
    assert ended.code == 0, ended.err
    assert f"taking {len(os.sched_getaffinity(0))}\n" in ended.err


def test_the_pipeline_that_was_printed_can_be_given_again(
    run: Cli, model: Path, target: str
) -> None:
    """A sparsity for all passes is not written into those that do not go by it."""
    spec = ("--pipeline", "prune-tiles{tile=2:4},prune-weights", "--sparsity", "0.6")
    shared = ("compile", model, "--target", target, "--json")
    printed = run(*shared, *spec).json()["pipeline"]
    assert printed == "prune-tiles{tile=2:4},prune-weights{sparsity=0.6}"
    assert run(*shared, "--pipeline", printed).json()["pipeline"] == printed
    same = ("--pipeline", printed, "--sparsity", "0.6")
    assert run(*shared, *same).json()["pipeline"] == printed


def test_run_verify_and_bench_take_the_artifact(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    assert run("compile", model, "--target", target).code == 0
    np.savez(tmp_path / "d.npz", x=normal(3, 8))
    ended = run("run", "model.faithful.tw", "--data", "d.npz", "-o", "out.npz", "--json")
    assert ended.json()["outputs"] == {"y": {"shape": [3, 4], "dtype": "float32"}}
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 4)
    ended = run("verify", "model.faithful.tw", model, "--data", "d.npz", "--json")
    assert (ended.code, ended.json()["agree"]) == (0, True)


def test_how_far_answers_may_be_off_hangs_on_what_runs_a_rounding_model(
    run: Cli, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """g (float[1,8] x) => (float[1,8] y) {
        q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)
    }"""
    model = small_model(text, 17, s=np.array(0.02, np.float32), z=np.array(128, np.uint8))
    onnx.save(model, tmp_path / "q.onnx")
    assert run("compile", "q.onnx", "--target", target, "-o", "q.tw").code == 0
    np.savez(tmp_path / "d.npz", x=normal(9, 8))
    slacks: list[float] = []

    def noted(saved: Path, feeds: object, slack: float) -> AllValues:
        slacks.append(slack)
        return AllValues({"y": 0.1})

    monkeypatch.setattr("tilewright.tools.commands.allowed_error", noted)
    monkeypatch.setattr(Faithful, "slack", 0.25)
    for pair in (("q.onnx", "q.onnx"), ("q.onnx", "q.tw"), ("q.tw", "q.onnx")):
        assert run("verify", *pair, "--data", "d.npz").code == 0
    assert slacks == [1e-6, 0.25, 0.25]


def test_a_device_that_the_target_does_not_run_on_is_refused_before_any_work(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    ended = run("compile", model, "--target", target, "--device", "qemu")
    assert (ended.code, ended.err) == (2, "tilewright: --device qemu: there is none\n")
    assert not (tmp_path / "model.faithful.tw").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--tracker", "lab:9190"),
        ("--key", "pi4"),
        ("--device", "qemu", "--tracker", "lab:9190", "--key", "pi4"),
    ],
)
def test_a_tracker_and_a_key_go_together_and_without_a_device(
    run: Cli, model: Path, target: str, options: tuple[str, ...]
) -> None:
    ended = run("compile", model, "--target", target, *options)
    assert (ended.code, "--tracker and --key go together" in ended.err) == (2, True)


def test_a_tracker_and_a_key_are_a_device(run: Cli, model: Path, target: str) -> None:
    options = ("--tracker", "lab:9190", "--key", "pi4")
    ended = run("compile", model, "--target", target, *options)
    assert ended.err == "tilewright: --device tracker://lab:9190/pi4: there is none\n"


def test_programs_for_boards_are_refused_where_there_are_no_boards(
    run: Cli, tmp_path: Path
) -> None:
    ended = run("device", "build", "--target", "cpu")
    assert (ended.code, "target cpu runs on no board" in ended.err) == (2, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    ended = run("device", "build", "--target", "arm-edge", "-o", "full")
    assert (ended.code, '"full" holds something else' in ended.err) == (2, True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_device_is_refused_for_what_onnxruntime_runs(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=normal(3, 8))
    ended = run("run", model, "--data", "d.npz", "--device", "qemu")
    assert ended.code == 2
    assert "--device qemu: it is for artifacts" in ended.err


def test_verify_takes_quantized_models_of_open_size(run: Cli, tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
        q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)
    }"""
    for name, scale in (("a", 0.1), ("b", 0.4)):
        zero = np.array(128, np.uint8)
        model = small_model(text, 17, s=np.array(scale, np.float32), z=zero)
        onnx.save(model, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "x.npz", x=normal(5, 4))
    same = run("verify", "a.onnx", "a.onnx", "--data", "x.npz", "--json")
    assert (same.code, same.json()["rms_rel_error"], same.json()["samples"]) == (0, 0, 5)
    ended = run("verify", "a.onnx", "b.onnx", "--data", "x.npz")
    assert (ended.code, "of all values by root mean square is allowed" in ended.err) == (
        1,
        True,
    )


def test_verify_exits_1_where_two_models_disagree(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=normal(3, 8))
    text = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    onnx.save(small_model(text, w=normal(8, 4)), tmp_path / "other.onnx")
    ended = run("verify", model, "other.onnx", "--data", "d.npz", "--json")
    assert (ended.code, ended.json()["agree"]) == (1, False)
    assert 'disagree: output "y" differs by' in ended.err


def test_verify_refuses_two_models_of_different_inputs(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=normal(3, 8))
    text = "g (float[1,8] z) => (float[1,4] y) { y = MatMul(z, w) }"
    onnx.save(small_model(text, w=normal(8, 4)), tmp_path / "other.onnx")
    ended = run("verify", model, "other.onnx", "--data", "d.npz")
    assert_refused(ended, "has the inputs ['x'], and other.onnx ['z']")


def test_an_artifact_with_wrong_answers_is_not_written(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    before = left_in(tmp_path) | {"wrong.toml"}
    ended = run("compile", model, "--target", write_target(tmp_path, "wrong"))
    assert ended.code == 1
    assert "disagrees with model.onnx under onnxruntime" in ended.err
    assert left_in(tmp_path) == before


def test_passes_and_targets_are_listed(run: Cli) -> None:
    targets = run("targets", "--json").json()["targets"]
    names = [target["name"] for target in targets]
    assert names == sorted(names)
    assert "cpu" in names
    assert 'backend = "cpu"' in run("targets", "cpu").out
    assert run("targets", "cpu", "--json").json()["name"] == "cpu"
    assert run("zoo", "list", "--json").json()["models"]
    parts = run("passes", "--json").json()["parts"]
    assert "taylor" in [part["name"] for part in parts["criterion"]]
    listed = run("passes").out
    assert "criterion=taylor" in listed
    assert "UniQL" in listed
    assert "    rows: one of uniform, global [uniform]\n" in listed
    assert "    smallest: a whole number from 0 on [4096]\n" in listed


def test_version_and_help_need_nothing_else(run: Cli) -> None:
    assert run("--version").out.startswith("tilewright, version 0.")
    assert "compile" in run("--help").out


# ---- what is refused ----


def compile_file(run: Cli, target: str, path: Path, *more: object) -> Ended:
    return run("compile", path, "--target", target, "-o", "out.tw", *more)


def no_onnx(folder: Path) -> Path:
    (folder / "m.onnx").write_text("hello")
    return folder / "m.onnx"


def truncated(folder: Path) -> Path:
    path = two_layers(folder / "m.onnx")
    os.truncate(path, path.stat().st_size // 2)
    return path


def with_external(folder: Path, location: str) -> Path:
    text = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    model = small_model(text)
    tensor = onnx.TensorProto(
        name="w", data_type=1, dims=(8, 4), data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=location)
    model.graph.initializer.append(tensor)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def external_missing(folder: Path) -> Path:
    return with_external(folder, "w.bin")


def external_short(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(bytes(7))
    return with_external(folder, "w.bin")


def external_absolute(folder: Path) -> Path:
    return with_external(folder, "/etc/hostname")


def external_above(folder: Path) -> Path:
    return with_external(folder, "../w.bin")


def external_link(folder: Path) -> Path:
    (folder / "w.bin").symlink_to("/etc/hostname")
    return with_external(folder, "w.bin")


def with_nan(folder: Path) -> Path:
    weight = normal(8, 4)
    weight[0, 0] = np.nan
    text = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    onnx.save(small_model(text, w=weight), folder / "m.onnx")
    return folder / "m.onnx"


def with_inf(folder: Path) -> Path:
    weight = normal(8, 4)
    weight[0] = np.inf
    text = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    onnx.save(small_model(text, w=weight), folder / "m.onnx")
    return folder / "m.onnx"


def unbound(folder: Path) -> Path:
    return open_batch(folder / "m.onnx")


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (lambda folder: folder / "none.onnx", "does not exist"),
        (no_onnx, "is not an ONNX file"),
        (truncated, "damaged or cut short"),
        (
            external_missing,
            'the weight "w" is said to be in "w.bin", but there is no such file',
        ),
        (external_short, 'the weight "w" needs 128 bytes at 0 of "w.bin", which has only 7'),
        (external_absolute, 'in "/etc/hostname", which is not a path relative'),
        (external_above, 'in "../w.bin", which leads out of the model\'s folder'),
        (external_link, 'in "w.bin", which is a link to a file outside'),
        (with_nan, 'the weight "w" holds 1 NaN and 0 Inf'),
        (with_inf, 'the weight "w" holds 0 NaN and 4 Inf'),
        (unbound, "--dim batch=N"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_message(
    run: Cli, target: str, tmp_path: Path, write: Callable[[Path], Path], part: str
) -> None:
    path = write(tmp_path)
    before = left_in(tmp_path)
    assert_refused(compile_file(run, target, path), part)
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--target", "cpuu"), 'no target "cpuu". Did you mean "cpu"?'),
        (("--target", "none.toml"), 'Target "none.toml" cannot be read'),
        (("--sparsity", "1"), "--sparsity 1.0: it is the share of weights to remove"),
        (("--sparsity", "-0.1"), "--sparsity -0.1: it is the share"),
        (("--sparsity", "1.2"), "but not including, 1. Try --sparsity 0.6."),
        (("--sparsity", "60"), "Try --sparsity 0.60."),
        (("--sparsity", "nan"), "--sparsity nan: it is the share"),
        (("--sparsity", "much"), "--sparsity"),
        (("--precision", "int3"), "has no kernels for it. It has fp32"),
        (("--pipeline", "prune-tile"), 'no pass "prune-tile". Did you mean "prune-tiles"?'),
        (("--pipeline", "prune-tiles{sparsty=0.5}"), 'Did you mean "sparsity"?'),
        (("--pipeline", "prune-tiles{"), "cannot be read"),
        (("--pipeline", "prune-tiles{sparsity=2}"), "sparsity is 2.0"),
        (("--pipeline", "fold-constants", "--sparsity", "0.5"), "would have no effect"),
        (("--pipeline", "fold-constants", "--plan", "p.json"), "would have no effect"),
        (("--pipeline", "prune-tiles{tile=2:4}", "--sparsity", "0.6"), "say how much goes"),
        (
            ("--pipeline", "prune-channels{allocate=tolerance}", "--sparsity", "0.6"),
            "say how much goes",
        ),
        (("--pipeline", "heal"), "nothing is pruned before it. Put it behind a pass"),
        (("--pipeline", "fold-constants,heal,prune-tiles"), "nothing is pruned before it"),
        (("--pipeline", "prune-tiles,match-tiles"), "for prune-tiles, which runs before it"),
        (
            ("--pipeline", "prune-tiles{tile=2:4,sparsity=0.8}"),
            "prune-tiles{sparsity=0.8} would have no effect, for tile=2:4 says how much goes",
        ),
        (
            ("--pipeline", "prune-channels{allocate=tolerance,sparsity=0.3}"),
            "{sparsity=0.3} would have no effect, for allocate=tolerance says",
        ),
        (
            ("--pipeline", "prune-tiles{sparsity=0.6}", "--sparsity", "0.5"),
            "--sparsity 0.5 and the pipeline's prune-tiles{sparsity=0.6} are different",
        ),
        (("--plan", "none.json"), 'Plan "none.json" cannot be read'),
        (("--dim", "x"), "--dim x: write NAME=N"),
        (("--dim", "x=one"), "--dim x=one: write NAME=N"),
        (("--dim", "batch=1"), "no such open dimension"),
        (("--dim", "batch=1,seq=8"), "for each: --dim batch=1 --dim seq=8"),
        (("--threads", "0"), "--threads"),
        (("--tune", "long"), "--tune"),
        (("--calibration", "none.npz"), 'Calibration data "none.npz" does not exist'),
        (("--outputt", "x"), "--outputt"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_message(
    run: Cli, model: Path, target: str, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    (tmp_path / "p.json").write_text('{"levels": {}}')
    before = left_in(tmp_path)
    chosen = () if "--target" in options else ("--target", target)
    assert_refused(run("compile", model, *chosen, *options), part)
    assert left_in(tmp_path) == before


def test_timings_that_are_damaged_are_one_message_before_any_work(
    run: Cli, model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "timings.sqlite").write_bytes(b"damaged" * 200)
    before = left_in(tmp_path)
    ended = run("compile", model, "--target", target, "--tune", "quick")
    assert_refused(ended, "Timings", "Remove the file", "--tune 0")
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (normal(3, 8), ["few samples (3)"]),
        (np.ones((20, 8), np.float32), ["all samples are the same"]),
        (np.ones((2, 8), np.float32), ["few samples (2)", "all samples are the same"]),
        (normal(20, 8), []),
    ],
)
def test_calibration_data_that_say_little_are_told(
    samples: np.ndarray, said: list[str], run: Cli, model: Path, target: str
) -> None:
    np.savez("c.npz", x=samples)
    ended = run("compile", model, "--target", target, "--calibration", "c.npz", "-o", "c.tw")
    assert ended.code == 0
    assert [each in ended.err for each in said] == [True] * len(said)
    assert ended.err.count("calibration: ") == len(said)


def test_agreement_on_samples_that_are_all_the_same_is_no_figure(
    run: Cli, model: Path, target: str
) -> None:
    np.savez("c.npz", x=np.ones((20, 8), np.float32))
    shared = ("--target", target, "--calibration", "c.npz", "--sparsity", "0.5")
    ended = run("compile", model, *shared, "-o", "c.tw")
    assert (ended.code, "Agreement" in ended.out) == (0, False)
    assert "samples are the same: how far the answers moved is not measured" in ended.err


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"z": normal(3, 8)}, 'no array for input "x"'),
        ({"x": normal(3, 8), "z": normal(3, 8)}, 'holds "z", which the model does not read'),
        ({"x": normal(3, 9)}, "has shape (3, 9)"),
        ({"x": normal(3, 8).astype(np.int32)}, "is int32, but the model reads float32"),
        ({"x": normal(0, 8)}, "holds no samples"),
        ({}, "holds no arrays"),
        ({"x": np.array([None])}, "cannot be read"),
    ],
)
def test_calibration_data_that_does_not_fit_is_one_message(
    run: Cli,
    model: Path,
    target: str,
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    part: str,
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)  # type: ignore[arg-type]
    before = left_in(tmp_path)
    ended = compile_file(run, target, model, "--calibration", "c.npz")
    assert_refused(ended, part)
    assert left_in(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_to_is_one_message(
    run: Cli,
    model: Path,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    # The system lets root write anywhere, so the refusal is made up.
    def refuse(*_: object, **__: object) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert_refused(compile_file(run, target, model), "cannot be written")


def test_output_over_other_files_or_nowhere_is_refused(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert_refused(run("compile", model, "--target", target, "-o", "mine"), "did not write")
    assert_refused(run("compile", model, "--target", target, "-o", "no/a.tw"), "does not exist")
    assert left_in(tmp_path / "mine") == {"thesis.txt"}


def test_a_disk_that_fills_up_leaves_nothing(
    run: Cli, model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Graph, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = left_in(tmp_path)
    monkeypatch.setattr(Graph, "save", full)
    assert_refused(
        compile_file(run, target, model), "there is no space left", "Nothing was left"
    )
    assert left_in(tmp_path) == before


def test_a_tampered_artifact_is_not_run(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    assert compile_file(run, target, model).code == 0
    np.savez(tmp_path / "d.npz", x=normal(1, 8))
    with (tmp_path / "out.tw" / "weights.bin").open("r+b") as stream:
        stream.write(b"\xff")
    for command in (
        ("run", "out.tw", "--data", "d.npz"),
        ("verify", "out.tw", model, "--data", "d.npz"),
        ("bench", "out.tw"),
        ("eval", "out.tw", "--task", "ocr-exact"),
    ):
        assert_refused(run(*command), 'the file "weights.bin" was changed: its sha256 is')


def test_other_commands_refuse_what_does_not_exist(run: Cli, model: Path, target: str) -> None:
    assert_refused(run("eval", model, "--task", "ocr"), 'no task "ocr"')
    assert_refused(run("zoo", "get", "minilmm"), "minilm")
    assert_refused(run("compile", "zoo:minilmm", "--target", target), "minilm")
    assert_refused(run("bench", "none.tw"), "does not exist")
    assert_refused(run("bench", "none.tw", "--against", "openvin"), 'no engine "openvin"')
    assert_refused(run("run", "none.onnx", "--data", "none.npz"), "does not exist")
    assert_refused(run("targets", "cpux"), 'no target "cpux"')
    assert_refused(run("reproduce", "none"), "cannot be rerun")
    assert_refused(run("compilee"), "compilee")


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('backend = "cpu"', "", "is not complete: the key 'backend' is missing"),
        ('lanes = "positions"', "", "is not complete: the key 'lanes' is missing"),
        ('tile = "4x1"', 'tile = "4y1"', 'has a wrong value: a tile is "4y1" and must be'),
        ("threads = 0", 'threads = "four"', "threads is 'four' and must be a whole number"),
        ('tile = "4x1"', "tile = 4", "tile is 4 and must be a text"),
        ('lanes = "positions"', 'lanes = "position"', 'lanes is "position" and must be'),
        ("min_positions = 24", 'min_positions = "24"', "'24' and must be a whole number"),
        ("[[orders.int8]]", "[orders.int8]", "and must be a list"),
        ("[[orders.fp32]]", "[orders.fp32]", "cannot be read"),
        ('backend = "cpu"', 'backend = "cpu"\npatterns = "2:4"', "patterns is '2:4'"),
    ],
)
def test_a_target_of_ones_own_with_a_mistake_is_told_where_it_is(
    line: str, instead: str, said: str, run: Cli, model: Path, tmp_path: Path
) -> None:
    text = run("targets", "cpu").out
    assert line in text
    (tmp_path / "mine.toml").write_text(text.replace(line, instead, 1))
    assert_refused(run("compile", model, "--target", "mine.toml"), said)


def test_data_that_does_not_fit_is_not_called_calibration(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", z=normal(3, 8))
    ended = run("verify", model, model, "--data", "d.npz")
    assert_refused(ended, 'Data has no array for input "x"')
    assert "alibration" not in ended.err


def test_a_fault_of_our_own_is_one_message_too_unless_debugging(
    run: Cli, model: Path, tmp_path: Path
) -> None:
    target = write_target(tmp_path, "faulty")
    ended = compile_file(run, target, model)
    assert_refused(ended, "a fault in tilewright itself: IndexError", "--debug")
    shown = compile_file(run, target, model, "--debug")
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert not (tmp_path / "out.tw").exists()


def test_wrong_use_exits_2_with_a_traceback_when_debugging(run: Cli, target: str) -> None:
    ended = compile_file(run, target, Path("none.onnx"), "--debug")
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert "does not exist" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_compile_leaves_the_old_artifact_and_nothing_else(
    run: Cli, model: Path, target: str, tmp_path: Path, number: signal.Signals
) -> None:
    assert compile_file(run, target, model).code == 0
    endless = write_target(tmp_path, "endless")
    before = left_in(tmp_path)
    program = (
        "import sys, tilewright.targets as t; from tests.tools.fake_backends import BACKENDS; "
        "t.BACKENDS = BACKENDS; from tilewright.tools.cli import main; main(sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "compile", model, "--target", endless, "-o", "out.tw"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
        # Who runs tests in the background may have a signal ignored, and so have its children.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "building\n":
            assert process.poll() is None
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    said = "tilewright: interrupted: no output was written.\n"
    assert (process.returncode, err) == (128 + number, said)
    assert left_in(tmp_path) == before
    assert artifact.read(tmp_path / "out.tw")["target"] == "test"


def test_reproduce_reruns_what_failed(
    run: Cli, model: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tilewright.passes.prune.tiles import PruneTiles

    np.savez(tmp_path / "c.npz", x=normal(16, 8))
    with monkeypatch.context() as broken:
        broken.setattr(PruneTiles, "__call__", lambda *_: 1 / 0)
        ended = compile_file(run, target, model, "--sparsity", "0.5", "--calibration", "c.npz")
        assert_refused(
            ended,
            "ZeroDivisionError",
            "Rerun: tilewright reproduce tilewright-repro/0001-prune",
        )
        again = run("reproduce", "tilewright-repro/0001-prune-tiles")
        assert_refused(again, "ZeroDivisionError")
    mended = run("reproduce", "tilewright-repro/0001-prune-tiles", "--json")
    assert mended.json()["pipeline"] == "prune-tiles{sparsity=0.5}"


def test_errors_are_told_in_json_mode_on_stderr_alone(run: Cli, target: str) -> None:
    assert_refused(run("compile", "none.onnx", "--target", target, "--json"), "does not exist")


def test_what_libraries_print_does_not_reach_stdout(
    run: Cli, model: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(*arguments: object) -> dict[str, object]:
        print("from Python")
        os.write(1, b"from C\n")
        return real(*arguments)  # type: ignore[arg-type]

    real = compile_model._figures
    monkeypatch.setattr(compile_model, "_figures", noisy)
    ended = run("compile", model, "--target", target, "--json")
    assert json.loads(ended.out)["target"] == "test"
    assert "from Python" in ended.err
    assert "from C" in ended.err


def test_a_compile_that_prunes_nothing_says_why(run: Cli, tmp_path: Path, target: str) -> None:
    two_layers(tmp_path / "m.onnx")
    said = run("compile", "m.onnx", "--target", target, "--sparsity", "0.6").out
    assert "Nothing was pruned: Gemm_0: the first layer of the network" in said
    assert "report.html lists 1 more layer." in said
    small_graph(
        "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }",
    ).save(tmp_path / "relu.onnx")
    said = run("compile", "relu.onnx", "--target", target, "--sparsity", "0.6").out
    assert "Nothing was pruned: the model has no layer with float weights of its own." in said


def test_of_several_reasons_to_prune_nothing_the_commonest_is_told(
    run: Cli, tmp_path: Path, target: str
) -> None:
    text = """g (float[1,8] x) => (float[1,8] y) {
        a = MatMul(x, u)
        d = DequantizeLinear(q, scale) b = MatMul(a, d)
        e = DequantizeLinear(q, scale) y = MatMul(b, e)
    }"""
    q, scale = np.ones((8, 8), np.int8), np.array(0.1, np.float32)
    onnx.save(small_model(text, u=normal(8, 8), q=q, scale=scale), tmp_path / "q.onnx")
    said = compile_file(run, target, tmp_path / "q.onnx", "--sparsity", "0.5").out
    wanted = "MatMul_2: its weights are quantized; prune before quantizing"
    assert f"Nothing was pruned: {wanted}; report.html lists 2 more layers." in said


def test_a_plan_and_a_sparsity_are_not_both_followed(
    run: Cli, model: Path, target: str, tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text('{"levels": {}}')
    options = ("--target", target, "--plan", "p.json", "--sparsity", "0.5")
    assert "--plan overrules --sparsity 0.5" in run("compile", model, *options).err


def test_a_model_where_an_artifact_is_wanted_is_called_a_file(run: Cli, model: Path) -> None:
    ended = run("bench", model)
    assert ended.code == 2
    assert "is a file, and an artifact is a folder" in ended.err
