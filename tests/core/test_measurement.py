from pathlib import Path

import pytest

from tilewright.measurement import Samples, Timer, machine, pairwise_ratio, sample, take_turns


def milliseconds(*values: float) -> Samples:
    return Samples(tuple(round(value * 1e6) for value in values))


def test_figures_are_in_milliseconds() -> None:
    samples = milliseconds(4, 1, 2, 3, 5)
    assert (samples.min_ms, samples.median_ms) == (1.0, 3.0)
    assert samples.spread == pytest.approx((4.6 - 1.4) / 3)


def test_warm_up_calls_are_not_counted() -> None:
    ticks = iter([0, 10, 100, 130])
    calls: list[int] = []
    taken = sample(lambda: calls.append(1), 2, warm_up=3, clock_ns=lambda: next(ticks))
    assert taken == Samples((10, 30))
    assert len(calls) == 5


def test_drift_cancels_in_the_ratio_of_rounds() -> None:
    ours = [milliseconds(1), milliseconds(2), milliseconds(4)]
    other = [milliseconds(3), milliseconds(6), milliseconds(12)]
    assert pairwise_ratio(other, ours) == 3.0


def test_the_machine_is_read_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n")
    found = machine(file)
    assert found["cpu"] == "Some CPU"
    assert found["vector"] == ["avx2", "avx512f"]
    assert "onnxruntime" in found["versions"]


def test_samples_of_a_device_keep_its_name_when_they_are_joined() -> None:
    rounds = [Samples((1,), "a GPU"), Samples((2,), "a GPU")]
    assert Samples.joined(rounds) == Samples((1, 2), "a GPU")


def test_turns_are_taken_in_an_order_that_turns_round_each_time() -> None:
    calls: list[str] = []

    def timer(name: str) -> Timer:
        def timed() -> Samples:
            calls.append(name)
            return Samples((len(calls),))

        return timed

    taken = take_turns([timer("a"), timer("b")], rounds=3)
    assert "".join(calls) == "abbaab"
    assert [[each.samples_ns[0] for each in rounds] for rounds in taken] == [
        [1, 4, 5],
        [2, 3, 6],
    ]
