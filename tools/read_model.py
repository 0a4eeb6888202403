"""Read what a user names as the model, and the example inputs that go with it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewright.artifact import file_sha256
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends.arrays import read_arrays
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.protocol import Report, silent

ZOO = "zoo:"
# Enough for a layer's Hessian: a token or pixel is a sample of it, and images have many.
_CALIBRATION_SAMPLES = {
    "efficientnet-lite0": 256,
    "minilm": 256,
    "ppocr-rec": 160,
    "smollm2": 64,
    "smollm2-decode": 1024,
}
_OTHER_SAMPLES = 64
_FEW_SAMPLES = 16  # of a user's, below which what is fitted to them is theirs alone


@dataclass(frozen=True)
class Source:
    """A model that was read: `file` is the original, `zoo` its name there, if it has one."""

    name: str
    file: Path
    sha256: str
    graph: Graph
    zoo: str | None


def read_model(
    model: str, dims: Mapping[str, int] | None = None, report: Report = silent
) -> Source:
    """Read a path or "zoo:NAME", whose dimensions have defaults that `dims` overrules."""
    file, bound = model_file(model, report)
    name = model.removeprefix(ZOO) if model.startswith(ZOO) else file.stem
    graph = read_onnx(file, dims, defaults=bound)
    zoo = name if model.startswith(ZOO) else None
    return Source(name, file, file_sha256(file), graph, zoo)


def model_file(model: str, report: Report = silent) -> tuple[Path, Mapping[str, int]]:
    """Return the .onnx file of a path or "zoo:NAME", and the zoo's default dimensions."""
    if not model.startswith(ZOO):
        return Path(model), {}
    from tilewright.frontends import zoo

    name = model.removeprefix(ZOO)
    if name not in zoo.MODELS:
        raise UnknownName("model in the zoo", name, zoo.MODELS)
    return zoo.get(name, report=report), zoo.MODELS[name].dims


def read_calibration(
    source: Source,
    data: Path | Mapping[str, np.ndarray] | None,
    seed: int = 0,
    report: Report = silent,
) -> Calibration | None:
    """Return the user's example inputs, or the zoo's for its models, or None."""
    if data is not None:
        arrays = read_arrays(data) if isinstance(data, Path) else data
        given = Calibration.from_arrays(arrays, source.graph.inputs)
        for doubt in _doubts(given):
            report(f"calibration: {doubt}")
        return given
    if source.zoo is None:
        return None
    from tilewright.frontends import zoo

    samples = _CALIBRATION_SAMPLES.get(source.zoo, _OTHER_SAMPLES)
    report(f"{samples} calibration samples for {source.zoo}")
    feeds = zoo.calibration(source.zoo, samples, seed=seed)
    try:
        return Calibration.from_feeds(feeds, source.graph.inputs)
    except UnusableInput as error:
        raise UnusableInput(
            f"The zoo's calibration data for {source.zoo} has its default sizes: {error} "
            "Give your own data with --calibration."
        ) from error


def _doubts(given: Calibration) -> Iterator[str]:
    """Say what of calibration data makes answers agree on them, and not elsewhere."""
    if given.samples < _FEW_SAMPLES:
        yield (
            f"there are few samples ({given.samples}): what is fitted to them agrees there, "
            "and less elsewhere. Give some hundreds."
        )
    if given.samples > 1 and given.are_alike():
        yield "all samples are the same, which say what one does. Give samples that differ."
