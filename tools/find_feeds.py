"""Find what an artifact or a model is fed: a user's samples, or random inputs that fit."""

from collections.abc import Mapping
from pathlib import Path

from tilewright import artifact
from tilewright.calibration import Calibration
from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends.arrays import read_arrays
from tilewright.frontends.onnx_file import read_onnx
from tilewright.protocol import Feeds
from tilewright.random_feeds import random_feeds
from tilewright.sizes import Sizes
from tilewright.tools.load_artifact import inputs_of


def first_feeds(folder: str, data: Path | None, dims: Mapping[str, int]) -> Feeds:
    """Return inputs to time: a user's first sample, or random ones of the first size."""
    if data is not None:
        if dims:
            raise UnusableInput("--dim: it is for random inputs; leave it out with --data.")
        return next(samples_of(data, folder).feeds())
    feeds = next(random_feeds(read_onnx(Path(folder) / artifact.MODEL), 1))
    sizes = sizes_of(folder)
    known = {} if sizes is None else dict(sizes.choices[0])
    if unknown := set(dims) - set(known):
        raise UnknownName("open dimension in the artifact", unknown.pop(), known)
    if sizes is None:
        return feeds
    # A mask at random would leave out what is to be timed.
    return sizes.resized(sizes.whole(feeds), known | dict(dims))


def sizes_of(folder: str) -> Sizes | None:
    """Return the sizes that an artifact was compiled for; None where it has but one."""
    stored = artifact.read(Path(folder)).get("sizes")
    return None if stored is None else Sizes.from_json(stored)


def samples_of(data: Path, model: str) -> Calibration:
    """Return a user's inputs, one feed a sample. Nothing is calibrated: errors say "Data"."""
    inputs = inputs_of(model)
    try:
        return Calibration.from_arrays(read_arrays(data), inputs)
    except UnusableInput as error:
        said = str(error).removeprefix("Calibration ")
        raise UnusableInput(said[:1].upper() + said[1:]) from error
