"""What taking something away does to a network's answers, measured one place at a time.

Errors within layers do not say how much the answers suffer: a residual stream carries some on
and lets others fade. So the answers themselves are compared, without labels, on calibration
data that nothing was fitted to. That places do not disturb each other is assumed.
"""

from collections.abc import Callable, Mapping

import numpy as np

from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.graph import Graph, constant

HELD_OUT = 4  # one calibration sample of so many judges what was fitted to the others
_SAMPLES = 32
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of what may go, at which answers are compared

# A network's constants that are others than in the dense one, by name.
Constants = Mapping[str, np.ndarray]


def changed(dense: Graph, edited: Graph) -> dict[str, np.ndarray]:
    """Return the constants of an edited graph that are others than in the dense one."""
    before = dense.constants()
    return {name: v for name, v in edited.constants().items() if v is not before[name]}


def _as_it_is(graph: Graph) -> Graph:
    return graph


class Probe:
    """The dense network and its answers on some samples."""

    def __init__(self, dense: Graph, calibration: Calibration) -> None:
        """Run the dense network on up to 32 of the calibration samples.

        Raises UnusableInput where its answers are not floats, or not finite.
        """
        self._dense = dense
        self._answers = Answers(dense, calibration.first(_SAMPLES))

    def costs(
        self,
        without: Callable[[int], Constants],
        most: int,
        healed: Callable[[Graph], Graph] = _as_it_is,
    ) -> np.ndarray:
        """Return the error of the answers without the first 1 to `most` entries of a place.

        `without(count)` are the constants then, and `healed` is what becomes of the network.
        Between the counts that are measured errors are interpolated.
        """
        counts = sorted({max(1, round(share * most)) for share in _SHARES}) if most else []
        errors = [self.error(healed(self._network_with(without(count)))) for count in counts]
        rising = np.maximum.accumulate([0.0, *errors])
        return np.interp(np.arange(1, most + 1), [0, *counts], rising)

    def error_with(self, changes: Constants) -> float:
        """Return `Answers.error` of the dense network with other constants."""
        return self.error(self._network_with(changes))

    def error(self, graph: Graph) -> float:
        """Return `Answers.error` of a graph."""
        return self._answers.error(graph)

    def _network_with(self, changes: Constants) -> Graph:
        graph = self._dense.edit()
        tensors = graph.gs.tensors()
        for name, values in changes.items():
            tensors[name].values = constant(name, values).values
        return graph
