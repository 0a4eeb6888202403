"""What taking something away does to a network's answers, measured one place at a time.

Errors within layers do not say how much the answers suffer: a residual stream carries some on
and lets others fade. So the answers themselves are compared, without labels, on calibration
data that nothing was fitted to. That places do not disturb each other is assumed.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cached_property

import numpy as np

from tilewright import oracle
from tilewright.answers import Answers, samples_kept_whole
from tilewright.calibration import Calibration
from tilewright.graph import Graph, constant, with_inputs
from tilewright.layers import linear_layers
from tilewright.passes.prune.bias import bias_of, use_counts

HELD_OUT = 4  # one calibration sample of so many judges what was fitted to the others
_SAMPLES = 32
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of what may go, at which answers are compared
_FEW_SHARES = (1 / 2, 1)  # where it is known how errors grow between them

# A network's constants that are others than in the dense one, by name.
Constants = Mapping[str, np.ndarray]


def changed(dense: Graph, edited: Graph) -> dict[str, np.ndarray]:
    """Return the constants of an edited graph that are others than in the dense one."""
    before = dense.constants()
    return {name: v for name, v in edited.constants().items() if v is not before[name]}


class Probe:
    """The dense network and its answers on some samples."""

    def __init__(
        self, dense: Graph, calibration: Calibration, layers: Collection[str] = ()
    ) -> None:
        """Run the dense network on up to 32 of the calibration samples.

        Fewer where so many samples' answers would not be kept whole. `layers` are those, by
        name, whose constants will be changed: where they are matrices, the network is loaded
        once for all changes. Raises UnusableInput where its answers are not floats, or not
        finite.
        """
        self._dense = dense
        count = min(_SAMPLES, samples_kept_whole(dense))
        self._answers = Answers(dense, calibration.first(count))
        constants = dense.constants()
        self._fed = {name: constants[name] for name in _matrices_and_biases(dense, layers)}

    @cached_property
    def _loaded(self) -> oracle.Session:
        """The dense network, with what may be changed among its inputs."""
        return oracle.session(with_inputs(self._dense, list(self._fed)), threads=1)

    def costs(
        self,
        without: Callable[[int], Constants],
        most: int,
        losses: np.ndarray | None = None,
        healed: Callable[[Graph], Graph] | None = None,
    ) -> np.ndarray:
        """Return the error of the answers without the first 1 to `most` entries of a place.

        `without(count)` are the constants then, and `healed` is what becomes of the network.
        Between the counts that are measured errors grow as the place's own `losses` do, or as
        the count where those are not known.
        """

        def error(changes: Constants) -> float:
            if healed is None:
                return self.error_with(changes)
            return self.error(healed(self._network_with(changes)))

        shares = _SHARES if losses is None else _FEW_SHARES
        counts = sorted({max(1, round(share * most)) for share in shares}) if most else []
        errors = [error(without(count)) for count in counts]
        rising = np.maximum.accumulate([0.0, *errors])
        grown = np.arange(most + 1) if losses is None else np.append(0.0, losses[:most])
        return np.interp(grown, grown[[0, *counts]], rising)[1:]

    def error_with(self, changes: Constants) -> float:
        """Return `Answers.error` of the dense network with other constants."""
        if not changes or not changes.keys() <= self._fed.keys():
            return self.error(self._network_with(changes))
        fed, loaded = {**self._fed, **changes}, self._loaded

        def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return oracle.outputs_of(loaded, {**feeds, **fed})

        return self._answers.error_of(run)

    def error(self, graph: Graph) -> float:
        """Return `Answers.error` of a graph."""
        return self._answers.error(graph)

    def _network_with(self, changes: Constants) -> Graph:
        graph = self._dense.edit()
        tensors = graph.gs.tensors()
        for name, values in changes.items():
            tensors[name].values = constant(name, values).values
        return graph


def _matrices_and_biases(graph: Graph, layers: Collection[str]) -> list[str]:
    """Return what of these layers is fed to the loaded network, not built into a new one.

    Those of convolutions are not among them: onnxruntime lays them out when it loads a model,
    and runs a few times slower where it cannot.
    """
    uses = use_counts(graph)
    names = []
    for layer in linear_layers(graph):
        if layer.name in layers and layer.node.op != "Conv":
            bias = bias_of(layer, uses)
            names += [layer.weight.name] + ([] if bias is None else [bias.name])
    return list(dict.fromkeys(map(str, names)))
