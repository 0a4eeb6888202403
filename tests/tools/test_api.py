from pathlib import Path

import numpy as np
import pytest

import tilewright
from tests.small_models import normal, small_graph
from tests.tools.conftest import made_up_times, write_target
from tests.tools.fake_backends import BACKENDS
from tilewright import oracle
from tilewright.tools import compile_model

TEXT = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"


def test_a_graph_is_compiled_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    graph = small_graph(TEXT, w=normal(8, 4))
    said: list[str] = []
    manifest = tilewright.compile(
        graph, write_target(tmp_path), output=tmp_path / "m.tw", report=said.append
    )
    assert manifest["artifact"] == str(tmp_path / "m.tw")
    assert said[0] == "pipeline: no passes"
    feeds = {"x": normal(1, 8, seed=1)}
    found = tilewright.load(tmp_path / "m.tw")(feeds)
    np.testing.assert_array_equal(found["y"], oracle.run(graph, feeds)["y"])


def test_a_tampered_artifact_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.targets.BACKENDS", BACKENDS)
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)
    graph = small_graph(TEXT, w=normal(8, 4))
    tilewright.compile(graph, write_target(tmp_path), output=tmp_path / "m.tw")
    (tmp_path / "m.tw" / "weights.bin").write_bytes(b"")
    with pytest.raises(tilewright.TilewrightError, match=r'"weights.bin" has 0 bytes'):
        tilewright.load(tmp_path / "m.tw")
