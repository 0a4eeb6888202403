"""Check a model that we built against numbers taken once from the original implementation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import UnusableInput
from tilewright.frontends.zoo.run_dense import open_model


@dataclass(frozen=True)
class Reference:
    """Some values of one output of the original: index -> value, and how near ours must be."""

    output: str
    values: Mapping[tuple[int, ...], float]
    atol: float


def check_parity(
    name: str, path: Path, feeds: Mapping[str, NDArray[np.generic]], reference: Reference
) -> None:
    """Run the model at `path` in onnxruntime and compare it with `reference`.

    Raises UnusableInput when a value is further away than its tolerance.
    """
    result = open_model(path)(dict(feeds))[reference.output]
    wrong = {
        index: (float(result[index]), expected)
        for index, expected in reference.values.items()
        if not abs(float(result[index]) - expected) <= reference.atol
    }
    if wrong:
        index, (found, expected) = next(iter(wrong.items()))
        raise UnusableInput(
            f"zoo: {name} was built, but {len(wrong)} of {len(reference.values)} checked "
            f'values of its output "{reference.output}" differ from the original: at '
            f"{list(index)} it is {found:.7g}, not {expected:.7g} (tolerance "
            f"{reference.atol:g}). The model was not kept. Try another onnxruntime version, "
            f"and report it if it stays."
        )
