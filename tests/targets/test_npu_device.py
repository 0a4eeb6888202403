"""What edge-npu says without its packages, and of devices."""

import pytest

from tilewright.errors import UnusableInput
from tilewright.targets.npu import backend


def test_artifacts_run_in_the_reference_model_and_nowhere_else() -> None:
    assert backend.NpuBackend().find_device(None) == "tosa-reference"
    assert backend.NpuBackend().find_device("tosa-reference") == "tosa-reference"
    with pytest.raises(UnusableInput, match=r"--device rpc://board: .*reference model"):
        backend.NpuBackend().find_device("rpc://board")


def test_missing_packages_are_told_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda _: None)
    told = r"needs ethosu, .*environment of its own.*pip install '\.\[zoo,npu\]'"
    with pytest.raises(UnusableInput, match=told):
        backend.check_installed()
