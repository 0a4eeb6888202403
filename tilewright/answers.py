"""Answers: how far another network's are from the dense one's, without labels."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.columns import real_positions
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape
from tilewright.threads import spread_over_cores

Outputs = Mapping[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Outputs]  # of one sample

_HOPELESS = -1e9  # agreement of answers that are not finite: JSON has no infinity
_MOST_VALUES = 1 << 26  # of all dense answers together, which are kept
_CLASSES = 2  # values of one sample, from which on the largest of them may be what is asked for


class Agreement(NamedTuple):
    """How well answers agree: 1 is the same, 0 no better than the mean of the dense answers.

    `value` is that of the output that agrees least. `same_argmax` is the share of samples whose
    largest value is at the same place, where the model has one output, a row of at least two
    values a sample; else None. It says nothing where the row is no scores of classes.
    """

    value: float
    same_argmax: float | None


class _Rows(NamedTuple):
    """What is kept of one output of one sample: the output's shape, and rows of it."""

    shape: tuple[int, ...]
    values: np.ndarray


class Answers:
    """The dense network's answers on some samples, to compare others with.

    Up to 2^26 values are kept, in the precision that they have: 256 MB in float32. Where there
    are more, such as the scores of 50,000 words at each position of a text, both networks are
    compared at some positions only: rows along an output's last axis, of each sample others,
    which the samples' numbers choose as a seed. Errors are added up sample by sample.
    """

    def __init__(self, dense: Graph, calibration: Calibration) -> None:
        """Run the dense network.

        Raises UnusableInput where its answers are not floats, or not finite.
        """
        self._feeds = tuple(calibration.feeds())
        run = _runner(dense, len(self._feeds))
        values = sum(x.size for x in _floats(run(self._feeds[0])).values())
        self._share = min(1.0, _MOST_VALUES / max(len(self._feeds) * values, 1))

        def kept(index: int) -> dict[str, _Rows]:
            outputs = _floats(run(self._feeds[index]))
            return {name: _Rows(x.shape, self._rows(x, index)) for name, x in outputs.items()}

        self._expected = spread_over_cores(kept, range(len(self._feeds)))
        for sample in self._expected:
            if not sample or not all(
                np.isfinite(rows.values).all() for rows in sample.values()
            ):
                raise UnusableInput(
                    "Answers are to be compared, but the model's are no finite floats on the "
                    "calibration data. Give other data, or leave out what compares them, such "
                    "as allocate=global."
                )
        self._spreads = {
            name: _spread([sample[name].values for sample in self._expected])
            for name in self._expected[0]
        }

    def error(self, graph: Graph) -> float:
        """Return the squared errors of a network's answers, added up over its outputs.

        Each is relative to how far the dense answers vary; infinite where answers have other
        shapes or are not finite.
        """
        return self.error_of(_runner(graph, len(self._feeds)))

    def error_of(self, run: Run) -> float:
        """Return `error` of a network that is loaded: `run` is called from several threads."""
        errors, _ = self._compared(run)
        return sum(errors.values())

    def divergence(self, graph: Graph) -> float:
        """Return how far a network's scores of classes are from the dense network's, in nats.

        It is the mean over rows, but for padding, of the Kullback-Leibler divergence of what
        softmax makes of them, where all outputs are such scores; infinite where answers have
        other shapes or are not finite.
        """
        run = _runner(graph, len(self._feeds))

        def of_sample(index: int) -> float:
            feeds, means = self._feeds[index], []
            outputs = run(feeds)
            for name, (shape, dense) in self._expected[index].items():
                if outputs[name].shape != shape:
                    return math.inf
                away = _divergences(dense, self._rows(outputs[name], index))
                real = real_positions(feeds, shape[:-1])[..., np.newaxis]
                counted = self._rows(real, index)[:, 0]
                means.append(away[counted].sum() / max(counted.sum(), 1))
            return float(np.mean(means))

        found = float(np.mean(spread_over_cores(of_sample, range(len(self._feeds)))))
        return found if math.isfinite(found) else math.inf

    def agreement(self, graph: Graph) -> Agreement:
        """Compare a network's answers with the dense network's."""
        errors, same = self._compared(_runner(graph, len(self._feeds)))
        return Agreement(max(1 - max(errors.values()), _HOPELESS), same)

    def _compared(self, run: Run) -> tuple[dict[str, float], float | None]:
        """Return the error of each output, and the share of samples of the same argmax."""

        def of_sample(index: int) -> tuple[dict[str, float], list[bool]]:
            outputs = run(self._feeds[index])
            errors, same = {}, []
            for name, (shape, dense) in self._expected[index].items():
                found = outputs[name]
                one = len(self._spreads) == 1
                if one and shape[-1:] == (dense.size,) and dense.size >= _CLASSES:
                    same.append(bool(found.argmax() == dense.argmax()))
                squares = math.inf
                if found.shape == shape:
                    wrong = np.subtract(self._rows(found, index), dense, dtype=float).ravel()
                    squares = float(wrong @ wrong)
                relative = squares / self._spreads[name]
                errors[name] = relative if math.isfinite(relative) else math.inf
            return errors, same

        samples = spread_over_cores(of_sample, range(len(self._feeds)))
        errors = {name: sum(each[name] for each, _ in samples) for name in self._spreads}
        same = [one for _, its in samples for one in its]
        return errors, float(np.mean(same)) if len(same) == len(samples) else None

    def _rows(self, x: np.ndarray, index: int) -> np.ndarray:
        """Return those of one sample's rows along the last axis that are compared."""
        rows = x.reshape(-1, x.shape[-1] if x.ndim and x.size else 1)
        if self._share == 1:
            return rows
        count = math.ceil(self._share * len(rows))
        chosen = np.random.default_rng(index).choice(len(rows), count, replace=False)
        return rows[np.sort(chosen)]


def samples_kept_whole(graph: Graph) -> int:
    """Return how many samples' answers are kept whole, at least one.

    Outputs of open dimensions are taken to be small.
    """
    shapes = [static_shape(t) for t in graph.outputs if np.dtype(t.dtype).kind == "f"]
    values = sum(math.prod(shape) for shape in shapes if shape is not None)
    return max(1, _MOST_VALUES // max(values, 1))


def _runner(graph: Graph, samples: int) -> Run:
    """Return what runs a graph: so many samples share the cores out among them."""
    threads = max(1, oracle.cores() // samples)
    return partial(oracle.outputs_of, oracle.session(graph, threads))


def _floats(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: x for name, x in outputs.items() if x.dtype.kind == "f"}


def _divergences(dense: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return the Kullback-Leibler divergence of each row of scores, in nats."""
    wanted, given = log_softmax(dense, axis=-1), log_softmax(found, axis=-1)
    rows: np.ndarray = (np.exp(wanted) * (wanted - given)).sum(axis=-1)
    return rows


def _spread(values: list[np.ndarray]) -> float:
    """Return the sum of squared differences from the mean of all."""
    mean = sum(float(x.sum(dtype=float)) for x in values) / max(sum(x.size for x in values), 1)
    return max(sum(float(np.square(x - np.float64(mean)).sum()) for x in values), 1e-30)
