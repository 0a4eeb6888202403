"""A device is given to the artifacts that run on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_models import normal
from tests.tools.conftest import Cli
from tests.tools.fake_backends import Faithful
from tilewright import artifact
from tilewright.errors import UnusableInput
from tilewright.tools.give_device import give_device

CPU, BOARD, OLD = {"device": "host"}, {"device": "qemu"}, dict[str, Any]()


@pytest.mark.parametrize(
    ("device", "given"),
    [(None, set()), ("rpc://pi:9090", {"board"}), ("host", {"cpu", "old"})],
)
def test_a_device_is_not_given_to_what_runs_on_this_machine(
    device: str | None, given: set[str]
) -> None:
    assert give_device({"cpu": CPU, "board": BOARD, "old": OLD}, device) == given


def test_a_device_that_nothing_runs_on_is_refused_and_what_there_is_told() -> None:
    with pytest.raises(
        UnusableInput, match=r'--device qemu: .* there is cpu for "host"\. Leave'
    ):
        give_device({"cpu": CPU}, "qemu")
    with pytest.raises(UnusableInput, match=r"--device qemu: .* there is no artifact\. Leave"):
        give_device({}, "qemu")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """List which artifacts were loaded on what."""
    calls: list[tuple[str, str | None]] = []
    load = Faithful.load

    def noted(
        self: Faithful, folder: Path, threads: int | None = None, device: str | None = None
    ) -> Any:
        calls.append((folder.name, device))
        return load(self, folder, threads, device)

    monkeypatch.setattr(Faithful, "load", noted)
    return calls


def test_verify_gives_a_device_to_the_artifact_for_it_and_not_to_the_one_for_this_machine(
    run: Cli, model: Path, target: str, loaded: list[tuple[str, str | None]]
) -> None:
    for name in ("here.tw", "there.tw"):
        assert run("compile", model, "--target", target, "-o", name).code == 0
    manifest = artifact.read(Path("there.tw"))
    artifact.seal(Path("there.tw"), {**manifest, "device": "qemu"})
    np.savez("d.npz", x=normal(2, 8))
    loaded.clear()
    shared = ("--data", "d.npz", "--device", "rpc://pi:9090")
    assert run("verify", "here.tw", "there.tw", *shared).code == 0
    assert loaded == [("here.tw", None), ("there.tw", "rpc://pi:9090")]


def test_verify_refuses_a_device_that_neither_of_two_models_runs_on(
    run: Cli, model: Path, target: str
) -> None:
    assert run("compile", model, "--target", target, "-o", "here.tw").code == 0
    np.savez("d.npz", x=normal(2, 8))
    for first in (model, "here.tw"):
        ended = run("verify", first, model, "--data", "d.npz", "--device", "qemu")
        assert (ended.code, ended.out) == (2, "")
        assert "--device qemu: nothing here can be run there" in ended.err
