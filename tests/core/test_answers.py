"""Answers: compared with the dense network's, whatever they mean."""

import tracemalloc

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright import answers as answers_module
from tilewright.answers import Answers, samples_kept_whole
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph

ROW = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"


def samples(graph: Graph, count: int = 50) -> Calibration:
    arrays = {t.name: normal(count, *t.shape[1:], seed=5) for t in graph.inputs}
    return Calibration.from_arrays(arrays, graph.inputs)


def test_agreement_is_the_share_of_variance_that_is_right() -> None:
    weights = normal(8, 4)
    dense, other = small_graph(ROW, w=weights), small_graph(ROW, w=weights * np.float32(0.9))
    calibration = samples(dense)
    answers = Answers(dense, calibration)
    assert answers.agreement(dense) == (1.0, 1.0)
    y = np.concatenate([feeds["x"] @ weights for feeds in calibration.feeds()]).astype(float)
    error = np.square(0.1 * y).sum() / np.square(y - y.mean()).sum()
    # Weights are rounded to float32, and so are sums.
    assert answers.error(other) == pytest.approx(error, rel=1e-5)
    found = answers.agreement(other)
    assert found.value == pytest.approx(1 - error, rel=1e-5)
    assert found.same_argmax == 1.0  # scaling moves no largest value


def test_divergence_is_that_of_what_softmax_makes_of_rows() -> None:
    weights, moved = normal(8, 4), normal(8, 4, seed=3)
    dense, other = small_graph(ROW, w=weights), small_graph(ROW, w=moved)
    calibration = samples(dense)
    answers = Answers(dense, calibration)
    assert answers.divergence(dense) == 0
    # Scores that are all higher by as much say the same.
    shifted = small_graph(
        ROW.replace("MatMul(x, w)", "Gemm(x, w, b)"), w=weights, b=np.full(4, 9.0, np.float32)
    )
    assert answers.divergence(shifted) < 1e-6
    x = np.concatenate([feeds["x"] for feeds in calibration.feeds()]).astype(float)
    p, q = (np.exp(x @ w) / np.exp(x @ w).sum(1, keepdims=True) for w in (weights, moved))
    expected = (p * np.log(p / q)).sum(1).mean()
    assert answers.divergence(other) == pytest.approx(expected, rel=1e-4)  # float32
    broken = small_graph(ROW, w=np.full((8, 4), np.nan, np.float32))
    assert answers.divergence(broken) == np.inf


def test_padding_diverges_from_nothing() -> None:
    text = """g (float[1,6,8] x, int64[1,6] attention_mask) => (float[1,6,4] y) {
        i = Cast<to=1>(attention_mask)  j = Unsqueeze(i, last)
        k = Add(x, j)  y = MatMul(k, w)
    }"""
    last = np.array([-1], np.int64)
    dense, other = (small_graph(text, w=normal(8, 4, seed=s), last=last) for s in (0, 1))
    x, mask = normal(5, 6, 8), np.tile(np.arange(6) < 4, (5, 1)).astype(np.int64)

    def divergence(x: np.ndarray, mask: np.ndarray) -> float:
        data = Calibration.from_arrays({"x": x, "attention_mask": mask}, dense.inputs)
        return Answers(dense, data).divergence(other)

    changed = x.copy()
    changed[:, 4:] = 100
    assert divergence(changed, mask) == pytest.approx(divergence(x, mask), rel=1e-6)
    assert divergence(changed, np.ones_like(mask)) > 2 * divergence(x, mask)


def test_samples_whose_largest_value_moved_are_counted() -> None:
    weights = normal(8, 4)
    swapped = weights[:, [1, 0, 2, 3]]
    dense, other = small_graph(ROW, w=weights), small_graph(ROW, w=swapped)
    calibration = samples(dense)
    moved = [(feeds["x"] @ weights).argmax() in (0, 1) for feeds in calibration.feeds()]
    assert 0 < np.mean(moved) < 1
    assert Answers(dense, calibration).agreement(other).same_argmax == 1 - np.mean(moved)


def test_the_output_that_agrees_least_counts_and_several_have_no_argmax() -> None:
    text = (
        "g (float[1,8] x) => (float[1,4] y, float[1,4] z) {y = MatMul(x, w) z = MatMul(x, v)}"
    )
    w, v = normal(8, 4), normal(8, 4, seed=1)
    dense = small_graph(text, w=w, v=v)
    other = small_graph(text, w=w, v=np.float32(0.5) * v)
    alone = "g (float[1,8] x) => (float[1,4] z) { z = MatMul(x, v) }"
    answers = Answers(dense, samples(dense))
    expected = Answers(small_graph(alone, v=v), samples(dense)).agreement(
        small_graph(alone, v=np.float32(0.5) * v)
    )
    assert answers.agreement(other) == (expected.value, None)


def test_answers_that_are_not_finite_are_as_wrong_as_can_be() -> None:
    dense = small_graph(ROW, w=normal(8, 4))
    broken = small_graph(ROW, w=np.full((8, 4), 3e38, np.float32))
    assert Answers(dense, samples(dense)).error(broken) == np.inf
    assert Answers(dense, samples(dense)).agreement(broken).value == -1e9
    with pytest.raises(UnusableInput, match="no finite floats"):
        Answers(broken, samples(dense))


WORDS = "g (float[1,64,8] x) => (float[1,64,500] y) { y = MatMul(x, w) }"


def test_of_many_large_answers_some_positions_are_kept_and_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = normal(8, 500)
    dense = small_graph(WORDS, w=weights)
    calibration = samples(dense, 20)  # 640,000 values
    other = small_graph(WORDS, w=weights + normal(8, 500, seed=9))
    exact = Answers(dense, calibration).error(other)
    monkeypatch.setattr(answers_module, "_MOST_VALUES", 100_000)
    tracemalloc.start()
    answers = Answers(dense, calibration)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Of 64 positions 10 are nearest to a share of 5/32, rounded up, of 500 floats each.
    assert 20 * 10 * 500 * 4 <= held < 2 * 20 * 10 * 500 * 4
    assert answers.agreement(dense) == (1.0, None)
    # A mean over 200 of 1,280 positions, whose errors vary by about half.
    assert answers.error(other) == pytest.approx(exact, rel=0.1)
    # Of each sample other positions are compared: what is wrong at any one of them is seen.
    text = WORDS.replace("y = MatMul(x, w)", "z = MatMul(x, w)  y = Add(z, o)")
    offset = np.zeros((1, 64, 1), np.float32)
    offset[:, 0] = 1
    for place in (0, 21, 63):
        assert answers.error(small_graph(text, w=weights, o=np.roll(offset, place, 1))) > 0


def test_answers_of_another_shape_are_as_wrong_as_can_be() -> None:
    dense = small_graph(ROW, w=normal(8, 4))
    wide = small_graph(ROW.replace("1,4", "1,5"), w=normal(8, 5))
    assert Answers(dense, samples(dense)).error(wide) == np.inf


@pytest.mark.parametrize(
    ("shape", "samples"), [("1,1024", 1 << 16), ("256,49152", 5), ("1,1,67108865", 1)]
)
def test_so_many_samples_are_kept_whole_as_have_2_to_the_26_answers(
    shape: str, samples: int
) -> None:
    graph = small_graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}")
    assert samples_kept_whole(graph) == samples


def test_open_dimensions_count_as_few_answers() -> None:
    graph = small_graph("g (float[n,49152] x) => (float[n,49152] y) { y = Relu(x) }")
    assert samples_kept_whole(graph) == 1 << 26
