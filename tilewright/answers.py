"""Answers: how far another network's are from the dense one's, without labels."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph

_HOPELESS = -1e9  # agreement of answers that are not finite: JSON has no infinity
_CLASSES = 2  # values of one sample, from which on the largest of them may be what is asked for


class Agreement(NamedTuple):
    """How well answers agree: 1 is the same, 0 no better than the mean of the dense answers.

    `value` is that of the output that agrees least. `same_argmax` is the share of samples whose
    largest value is at the same place, where the model has one output, a row of at least two
    values a sample; else None. It says nothing where the row is no scores of classes.
    """

    value: float
    same_argmax: float | None


class Answers:
    """The dense network's answers on some samples, to compare others with."""

    def __init__(self, dense: Graph, calibration: Calibration) -> None:
        """Run the dense network.

        Raises UnusableInput where its answers are not floats, or not finite.
        """
        self._feeds = tuple(calibration.feeds())
        self._expected = self._rows(dense)
        values = [row for rows in self._expected.values() for row in rows]
        if not values or not all(np.isfinite(row).all() for row in values):
            raise UnusableInput(
                "Answers are to be compared, but the model's are no finite floats on the "
                "calibration data. Give other data, or leave out what compares them, such as "
                "allocate=global."
            )

    def error(self, graph: Graph) -> float:
        """Return the squared errors of a network's answers, added up over its outputs.

        Each is relative to how far the dense answers vary; infinite where answers have other
        shapes or are not finite.
        """
        return sum(self._errors(self._rows(graph)).values())

    def agreement(self, graph: Graph) -> Agreement:
        """Compare a network's answers with the dense network's."""
        rows = self._rows(graph)
        worst = max(self._errors(rows).values())
        (name, dense), *others = self._expected.items()
        same = None
        if not others and all(_is_row(row) for row in dense):
            pairs = zip(rows[name], dense, strict=True)
            same = float(np.mean([found.argmax() == row.argmax() for found, row in pairs]))
        return Agreement(max(1 - worst, _HOPELESS), same)

    def _errors(self, rows: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
        return {name: _error(rows[name], dense) for name, dense in self._expected.items()}

    def _rows(self, graph: Graph) -> dict[str, list[np.ndarray]]:
        """Return each float output of every sample."""
        session = oracle.session(graph)
        found = [oracle.outputs_of(session, feeds) for feeds in self._feeds]
        return {
            name: [outputs[name] for outputs in found]
            for name, values in found[0].items()
            if values.dtype.kind == "f"
        }


def _error(found: Sequence[np.ndarray], dense: Sequence[np.ndarray]) -> float:
    """Return the squared error over all samples, relative to the dense answers' variance."""
    if [x.shape for x in found] != [x.shape for x in dense]:
        return float("inf")
    expected = _joined(dense)
    error = float(np.square(_joined(found) - expected).sum())
    spread = max(float(np.square(expected - expected.mean()).sum()), 1e-30)
    return error / spread if np.isfinite(error) else float("inf")


def _joined(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.reshape(-1) for x in values]).astype(np.float64)


def _is_row(values: np.ndarray) -> bool:
    return values.ndim > 0 and values.shape[-1] == values.size >= _CLASSES
