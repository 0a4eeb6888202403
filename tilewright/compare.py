"""Compare answers: how far two forms of a model are apart, output by output, on all samples."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, constant

# Values compared at a time, in float64: logits of a language model fill 50 MB an inference.
_COMPARED = 1 << 20
# Some units in the last place of a float32: what sums in another order differ by.
FLOAT32_SLACK = 1e-6

Outputs = Mapping[str, np.ndarray]


class Difference(NamedTuple):
    """How far an output is from what is expected.

    `max_rel_error` is the largest error relative to the largest magnitude in its sample, and
    `rms_rel_error` the errors' root mean square relative to that of what is expected, over all
    samples. Of integers and booleans all three figures are the share of unequal values.
    """

    output: str
    max_abs_error: float
    max_rel_error: float
    rms_rel_error: float
    is_float: bool = True

    def __str__(self) -> str:
        return (
            f'output "{self.output}" differs by {self.max_abs_error:.3g}, '
            f"{self.max_rel_error:.1e} of its largest value, {self.rms_rel_error:.1e} of all "
            "values by root mean square"
        )


class EachValue(NamedTuple):
    """No value may be off by more than `most` of the largest magnitude in its output."""

    most: float

    def excess(self, difference: Difference) -> float:
        """Return how many times what is allowed a difference is; above 1 it is too much."""
        return difference.max_rel_error / self.most

    def told(self, difference: Difference) -> str:
        """Say what is allowed."""
        return f"{self.most:.1e} of the largest value"


class AllValues(NamedTuple):
    """Each output may be off by so much, root mean square, relative to what is expected."""

    most: Mapping[str, float]

    def excess(self, difference: Difference) -> float:
        """Return how many times what is allowed a difference is; above 1 it is too much."""
        return difference.rms_rel_error / self.most[difference.output]

    def told(self, difference: Difference) -> str:
        """Say what is allowed."""
        return f"{self.most[difference.output]:.1e} of all values by root mean square"


Allowed = EachValue | AllValues


def compare(pairs: Iterable[tuple[Outputs, Outputs]]) -> list[Difference]:
    """Compare what is expected with what was found, sample by sample; one result an output.

    Raises UnusableInput where names or shapes differ.
    """
    sums: dict[str, _Sums] = {}
    for expected, found in pairs:
        if set(expected) != set(found):
            raise UnusableInput(
                f"The outputs to compare have different names: {sorted(expected)} and "
                f"{sorted(found)}. Compare two forms of the same model."
            )
        for name, values in expected.items():
            total = sums.setdefault(name, _Sums(name))
            total.add(np.asarray(values), np.asarray(found[name]))
    assert sums, "a model has outputs, and there is a sample"
    return [total.difference() for total in sums.values()]


def worst_of(differences: Iterable[Difference], allowed: Allowed) -> Difference:
    """Return the difference that is nearest to what is allowed, or furthest beyond it."""
    return max(differences, key=allowed.excess)


def shaken(graph: Graph, slack: float) -> Graph:
    """Return a model whose activations are quantized in steps that are larger by a `slack`.

    It rounds some values the other way, as any engine does whose numbers are off by so much
    before they are rounded: how far its answers are from the model's is how far those of a
    faultless engine may be. Only nodes QuantizeLinear of the main graph with constant scales
    are changed.
    """
    edited = graph.edit()
    for node in edited.nodes:
        if node.op == "QuantizeLinear" and isinstance(node.inputs[1], gs.Constant):
            scale = node.inputs[1]
            values = (scale.values * (1 + slack)).astype(scale.values.dtype)
            values = np.maximum(values, np.nextafter(scale.values, np.inf, dtype=values.dtype))
            node.inputs[1] = constant(f"{scale.name}/{node.name}/shaken", values)
    return edited


class _Sums:
    """One output's errors over samples."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_float = True
        self._count = self._unequal = 0
        self._max_abs = self._max_rel = self._norm = self._error_norm = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Take in a sample."""
        if expected.shape != found.shape:
            raise UnusableInput(
                f'Output "{self._name}" has the shapes {expected.shape} and {found.shape}. '
                "Compare two forms of the same model on the same inputs."
            )
        self._count += expected.size
        if expected.dtype.kind in "biuSUO" or found.dtype.kind in "biuSUO":
            self._is_float = False
            self._unequal += int(np.sum(expected != found))
            return
        largest = largest_error = 0.0
        a, b = expected.reshape(-1), found.reshape(-1)
        for start in range(0, a.size, _COMPARED):
            part = slice(start, start + _COMPARED)
            values, errors = _magnitudes(a[part], b[part])
            largest = max(largest, float(values.max()))
            largest_error = max(largest_error, float(errors.max()))
            self._norm = math.hypot(self._norm, _norm(values))
            self._error_norm = math.hypot(self._error_norm, _norm(errors))
        self._max_abs = max(self._max_abs, largest_error)
        self._max_rel = max(self._max_rel, largest_error / (largest or 1.0))

    def difference(self) -> Difference:
        """Return the figures of all samples."""
        if not self._is_float:
            wrong = self._unequal / max(self._count, 1)
            return Difference(self._name, wrong, wrong, wrong, is_float=False)
        # Where zeros are expected, errors are relative to ones.
        norm = self._norm or math.sqrt(max(self._count, 1))
        return Difference(self._name, self._max_abs, self._max_rel, self._error_norm / norm)


def _magnitudes(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the magnitudes of what is expected, where they are finite, and of the errors."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.where(same, 0.0, np.abs(a - b))
    # An error of NaN is as bad as any; it would win no comparison.
    errors = np.nan_to_num(errors, nan=np.inf, posinf=np.inf)
    return np.where(np.isfinite(a), np.abs(a), 0.0), errors


def _norm(magnitudes: np.ndarray) -> float:
    """Return the root of the sum of squares, which may be beyond what a float holds."""
    largest = float(magnitudes.max())
    if not largest or math.isinf(largest):
        return largest
    return largest * math.sqrt(float(np.square(magnitudes / largest).sum()))
