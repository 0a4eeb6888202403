"""Layers are timed at each level in turns with the dense build, and what is known is kept."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilewright.errors import DeviceFailed
from tilewright.findings import Findings
from tilewright.protocol import Steps, silent
from tilewright.steps import StepTimes
from tilewright.tools.time_levels import places_of, time_levels

A, B, REST = frozenset("a"), frozenset("b"), frozenset({"softmax"})


def test_times_are_relative_to_those_of_the_same_turn() -> None:
    # The machine was half as fast while the second level ran.
    first = StepTimes((A, B, REST), (10.0, 4.0, 1.0)), StepTimes((A, B, REST), (5.0, 4.0, 1.0))
    second = StepTimes((A, B, REST), (20.0, 8.0, 2.0)), StepTimes((A, B, REST), (4.0, 4.0, 2.0))
    places, whole = places_of({"a": [0, 1, 2], "b": [0, 3, 4]}, [first, second])
    assert [place.layers for place in places] == [("a",), ("b",)]
    # Dense: the median of 10 and 20 us.
    np.testing.assert_allclose(places[0].ms, [0.015, 0.0075, 0.003])
    np.testing.assert_allclose(places[1].ms, [0.006, 0.006, 0.003])
    assert whole == pytest.approx(0.0225)  # the median of 15 and 30 us


def test_layers_that_share_a_kernel_somewhere_are_one_place() -> None:
    apart = StepTimes((A, B, REST), (10.0, 4.0, 1.0))
    fused = StepTimes((A | B, REST), (6.0, 1.0))
    (place,), _ = places_of({"a": [0, 1], "b": [0, 3]}, [(apart, fused)])
    assert place.layers == ("a", "b")
    np.testing.assert_allclose(place.errors, [0, 4])
    np.testing.assert_allclose(place.ms, [0.014, 0.006])


def test_a_layer_that_no_kernel_runs_takes_no_time() -> None:
    times = StepTimes((REST,), (1.0,))
    (place,), _ = places_of({"a": [0, 1]}, [(times, times)])
    assert place.ms.tolist() == [0.0, 0.0]


def test_levels_that_are_known_are_not_built_again(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "searches.sqlite", "a model here")
    asked: list[float] = []

    def build(fails_at: float | None) -> Callable[[float, Path], Steps]:
        def built(sparsity: float, folder: Path) -> Steps:
            assert folder.is_dir()
            if sparsity == fails_at:
                raise KeyboardInterrupt
            asked.append(sparsity)
            return Steps([A, REST], lambda: [int(1e6 * (1 - sparsity)), 500])

        return built

    with pytest.raises(KeyboardInterrupt):
        time_levels((0.25, 0.5, 0.75), build(0.75), findings, 1, silent)
    assert asked == [0.0, 0.25, 0.5]
    asked.clear()
    times = time_levels((0.25, 0.5, 0.75), build(None), findings, 1, silent)
    assert asked == [0.0, 0.75]
    assert [pruned.of("a") for _, pruned in times] == [750.0, 500.0, 250.0]
    assert all(dense.of("a") == 1000.0 for dense, _ in times)
    asked.clear()
    assert time_levels((0.25, 0.5, 0.75), build(None), findings, 1, silent) == times
    assert asked == []


def test_levels_are_shared_out_and_a_device_that_fails_loses_nothing(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "searches.sqlite", "a model on two boards")
    failing = [0.5]
    told: list[str] = []

    def built(sparsity: float, folder: Path) -> Steps:
        def time() -> list[int]:
            if sparsity in failing:
                failing.remove(sparsity)
                raise DeviceFailed("Device pi4 went away.")
            return [int(1e6 * (1 - sparsity)), 500]

        return Steps([A, REST], time)

    times = time_levels((0.25, 0.5, 0.75), built, findings, 2, told.append)
    assert [pruned.of("a") for _, pruned in times] == [750.0, 500.0, 250.0]
    assert any("pi4 went away" in line for line in told)
