"""A run of the gate, in real processes, and the order of its rounds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_models import normal, open_batch, two_layers
from tilewright.errors import UnusableInput
from tilewright.gate import Status, judge_runs
from tilewright.measurement import Samples, Timer
from tilewright.protocol import silent
from tilewright.tools import time_run
from tilewright.tools.measure_engines import Contest
from tilewright.tools.time_run import DeviceDuel, Duel


def test_a_run_is_the_ratio_of_two_models_that_were_timed(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "m.onnx")
    said: list[str] = []
    duel = Duel(model, model, "onnxruntime", {"x": normal(1, 8)}, 1, said.append)
    assert duel.run(0) > 0
    assert said == ["m.onnx: run 1 against onnxruntime"]


def test_a_model_that_does_not_take_the_inputs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _: 0)  # else either may fail first
    now, before = two_layers(tmp_path / "now.onnx"), open_batch(tmp_path / "before.onnx")
    duel = Duel(now, before, "onnxruntime", {"x": normal(1, 8), "z": normal(1)}, 1, silent)
    with pytest.raises(UnusableInput, match=r"now\.onnx: onnxruntime cannot run these inputs"):
        duel.run(0)
    duel = Duel(now, tmp_path / "none.onnx", "onnxruntime", {"x": normal(1, 8)}, 1, silent)
    with pytest.raises(UnusableInput, match=r"before, .*none\.onnx: .* does not exist"):
        duel.run(0)


def named(tmp_path: Path, *names: str) -> list[Path]:
    return [tmp_path / name for name in names]


Slowed = Callable[[int, int, int], bool]


class Neighbour:
    """A device of which two artifacts are the same, and that a neighbour slows now and then.

    It takes 6 % more in the parts that `slowed` says, by run, round and place in the round;
    a little chance keeps ratios apart.
    """

    def __init__(self, slowed: Slowed, seed: int) -> None:
        self._slowed = slowed
        self._rng = np.random.default_rng(seed)
        self.calls = 0

    def timer(self, *_: object) -> Timer:
        return self._time

    def _time(self) -> Samples:
        run, left = divmod(self.calls, 2 * time_run._ROUNDS)
        self.calls += 1
        slow = 1.06 if self._slowed(run, *divmod(left, 2)) else 1.0
        return Samples((round(1e6 * slow * float(np.exp(0.01 * self._rng.normal()))),))


# Each would slow one side for ever in some fixed order.
NEIGHBOURS: dict[str, Slowed] = {
    "who comes first": lambda run, turn, place: place == 0,
    "who comes second in every second run": lambda run, turn, place: place == run % 2,
    "who begins the run, round by round": lambda run, turn, place: (turn + place) % 2 == 0,
    "who begins every second run": lambda run, turn, place: (turn + place) % 2 == run % 2,
}


@pytest.mark.parametrize("slowed", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_the_order_lets_no_neighbour_slow_one_side_more_than_the_other(
    tmp_path: Path, slowed: Slowed
) -> None:
    statuses = []
    for seed in range(300):
        device: Any = Neighbour(slowed, seed)
        now, before = named(tmp_path, "now", "before")
        duel = DeviceDuel(now, before, device, "pi", {}, 1, silent)
        statuses.append(judge_runs(duel.run, 0.05).status)
    # 0.54 % by the sign test, 1.6 of 300; more than 8 come by chance in 1 of 10,000.
    assert statuses.count(Status.FAILED) <= 8


def test_each_run_has_copies_of_its_own_of_the_artifacts_in_an_order_of_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before = named(tmp_path, "a.tw", "b.tw")
    for folder in (now, before):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(folder.name.encode())
    seen: list[list[Path]] = []

    def measure(models: Mapping[str, Path], *_: object, **__: object) -> Contest:
        for path in models.values():
            assert (path / "weights.bin").read_text() == path.name
        seen.append(list(models.values()))
        return Contest({name: [Samples((1000,))] for name in models}, 1)

    monkeypatch.setattr(time_run, "measure_engines", measure)
    duel = Duel(now, before, "tilewright", {}, 1, silent)
    assert [duel.run(index) for index in range(64)] == [1.0] * 64
    paths = [path for run in seen for path in run]
    assert len(set(paths)) == 128
    assert not any(path.exists() for path in paths)
    firsts = [run[0].name for run in seen]
    # Fair coins: fewer than 9 of 64 are alike in 1 of 10^9 runs of this test.
    assert min(firsts.count("a.tw"), firsts.count("b.tw")) >= 9
