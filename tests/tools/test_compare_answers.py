import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tests.tools.conftest import Cli
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.protocol import silent
from tilewright.tools.compare_answers import compare_answers

LINEAR = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"


def linear(weights: np.ndarray) -> Graph:
    return small_graph(LINEAR, w=weights)


def samples(x: np.ndarray) -> Calibration:
    return Calibration.from_arrays({"x": x}, linear(normal(8, 4)).inputs)


def test_it_says_how_far_the_answers_are_from_the_dense_ones() -> None:
    w, x = normal(8, 4), normal(20, 8, seed=1)
    less = np.where(np.abs(w) < 1, 0, w)
    found = compare_answers(linear(w), linear(less), samples(x), silent)
    dense, moved = x.astype(float) @ w, x.astype(float) @ less
    spread = np.square(dense - dense.mean()).sum()
    assert found is not None
    assert found["samples"] == 20
    # Sums of eight products in float32 are off by less than one part in a million.
    agreement = 1 - np.square(moved - dense).sum() / spread
    assert found["agreement"] == pytest.approx(agreement, abs=1e-5)
    assert found["same_argmax"] == np.mean(moved.argmax(1) == dense.argmax(1))
    assert 0 < found["agreement"] < 1


def test_up_to_64_samples_are_taken_from_all_over_the_data() -> None:
    w, x = normal(8, 4), normal(200, 8)
    less = w.copy()
    less[0] = 0
    x[:100, 0] = 0  # what is missing shows in the second half alone
    found = compare_answers(linear(w), linear(less), samples(x), silent)
    assert found is not None
    assert 32 <= found["samples"] <= 64
    assert found["agreement"] < 0.99


def test_of_a_large_model_few_samples_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.tools.compare_answers._MACS", 10 * 8 * 4)
    w = normal(8, 4)
    for known, taken in ((40, 10), (8, 8)):
        found = compare_answers(linear(w), linear(w), samples(normal(known, 8)), silent)
        assert found == {"agreement": 1.0, "same_argmax": 1.0, "samples": taken}
    monkeypatch.setattr("tilewright.tools.compare_answers._MACS", 1)
    found = compare_answers(linear(w), linear(w), samples(normal(40, 8)), silent)
    assert found is not None
    assert found["samples"] == 4


def test_answers_that_are_no_floats_are_not_compared() -> None:
    ranks = small_graph("g (float[1,8] x) => (int64[1,1] y) { y = ArgMax<axis=1>(x) }")
    said: list[str] = []
    assert compare_answers(ranks, ranks, samples(normal(5, 8)), said.append) is None
    (message,) = said
    assert message.startswith("how far the answers moved is not measured: ")


PRUNE = ("--pipeline", "prune-tiles{sparsity=0.5,ends=true,smallest=1}")


def test_compile_says_how_far_pruning_moved_the_answers(
    run: Cli, model: str, target: str
) -> None:
    np.savez("c.npz", x=normal(16, 8))
    pruned = ("compile", model, "--target", target, *PRUNE, "--calibration", "c.npz")
    ended = run(*pruned)
    assert ended.code == 0, ended.err
    said = (
        "Agreement with the dense answers on 16 calibration samples, which the passes have seen"
    )
    assert said in ended.out
    assert "agree with model.onnx, the compressed model (not the original)," in ended.out
    with open("model.faithful.tw/report.html", encoding="utf-8") as report:
        assert said in report.read()
    answers = run(*pruned, "-o", "again.tw", "--json").json()["answers"]
    assert set(answers) == {"agreement", "same_argmax", "samples"}
    assert f"{answers['agreement']:.4f}" in ended.out


def test_compile_says_that_it_cannot_compare_answers_without_data(
    run: Cli, model: str, target: str
) -> None:
    ended = run("compile", model, "--target", target, *PRUNE, "--json")
    assert ended.json()["answers"] is None
    assert "no calibration data: how far the answers moved is not measured" in ended.err


def test_what_changes_no_answers_is_not_judged(run: Cli, model: str, target: str) -> None:
    np.savez("c.npz", x=normal(16, 8))
    ended = run("compile", model, "--target", target, "--calibration", "c.npz")
    assert ended.code == 0, ended.err
    assert "Agreement" not in ended.out
    assert "outputs agree with model.onnx and the original under" in ended.out
