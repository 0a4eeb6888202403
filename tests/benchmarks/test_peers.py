"""The benchmark of the README, on a small model of the zoo."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import peers


@pytest.mark.zoo
def test_a_contest_at_another_size_is_written_with_all_its_figures(tmp_path: Path) -> None:
    asked = ["--models", "ppocr-cls", "--sizes", "x:0=2", "--sparsity", "0", "--rounds", "1"]
    output = tmp_path / "peers.json"
    peers.main([*asked, "--against", "onnxruntime", "--output", str(output)])
    (found,) = json.loads(output.read_text())
    assert found["size"] == "x:0=2"
    assert [row["engine"] for row in found["rows"]] == ["tilewright", "onnxruntime"]
    assert found["ratio"]["onnxruntime"] > 0


def test_the_artifacts_own_model_has_no_other_size() -> None:
    with pytest.raises(SystemExit):
        peers.main(["--models", "minilm", "--sizes", "seq=16", "--own"])
