"""tilewright.compile: the command as a function."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright.graph import Graph
from tilewright.pipeline import Pipeline
from tilewright.protocol import Report, silent
from tilewright.tools.compile_model import compile_model
from tilewright.tools.job import Job


def compile(
    model: str | Path | Graph | onnx.ModelProto,
    target: str = "cpu",
    *,
    output: str | Path | None = None,
    sparsity: float | None = None,
    precision: str | None = None,
    calibration: str | Path | Mapping[str, np.ndarray] | None = None,
    pipeline: str | Pipeline | None = None,
    plan: str | Path | None = None,
    dims: Mapping[str, int | Sequence[int]] | None = None,
    mask: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    seed: int = 0,
    tune: str = "0",
    evaluate: bool = False,
    estimate: bool = True,
    report: Report = silent,
) -> dict[str, Any]:
    """Compile a model, verify it, measure it, and return the artifact's manifest.

    `model` is a path, "zoo:NAME", a Graph or a ModelProto; `calibration` a path, or arrays by
    input name, of (samples, ...); the other options are those of the command line. The result's
    "artifact" is the folder, which `tilewright.load` runs.
    """
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        if isinstance(model, onnx.ModelProto):
            model = Graph.from_onnx(model)
        if isinstance(model, Graph):
            path = Path(folder) / "model.onnx"
            model.save(path)
            model = path
        job = Job(
            model=str(model),
            target=target,
            sparsity=sparsity,
            precision=precision,
            calibration=calibration if isinstance(calibration, Mapping) else _path(calibration),
            pipeline=None if pipeline is None else str(pipeline),
            plan=_path(plan),
            dims=dims or {},
            mask=mask,
            threads=threads,
            device=device,
            seed=seed,
            tune=tune,
            output=_path(output),
            evaluate=evaluate,
            estimate=estimate,
        )
        return compile_model(job, report)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
