"""What the tests of the command line share: it runs in this process, on fake backends."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.small_models import two_layers
from tests.tools.fake_backends import BACKENDS
from tilewright.measurement import Samples
from tilewright.tools import cli, compile_model
from tilewright.tools.measure_engines import Contest

TARGET = """
name = "test"
backend = "{backend}"
about = "for tests"
default_pipeline = "{pipeline}"
[[orders.fp32]]
lanes = "channels"
tile = "4x1"
min_positions = 1
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the one JSON object that stdout must be."""
        return json.loads(self.out)


Cli = Callable[..., Ended]


def write_target(folder: Path, backend: str = "faithful", pipeline: str = "prune-tiles") -> str:
    """Write a target file and return its path as an argument."""
    path = folder / f"{backend}.toml"
    path.write_text(TARGET.format(backend=backend, pipeline=pipeline))
    return str(path)


def made_up_times(
    models: Mapping[str, Path], feeds: Mapping[str, np.ndarray], threads: int, **_: object
) -> Contest:
    rounds = {e: [Samples((1_000_000 * (i + 1),))] for i, e in enumerate(models)}
    return Contest(rounds, threads)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Cli:
    """Return a function that runs `tilewright` in an empty folder, with made-up times."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return two_layers(tmp_path / "model.onnx")


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write_target(tmp_path)
