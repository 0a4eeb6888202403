"""Let few different integers stand for all weights of a layer: what packs them takes less."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layer, weighted_layers
from tilewright.options import check_positive, unusable
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.refit import fit, seen_by, settle, siblings
from tilewright.passes.quantize.codebook import best_codebook
from tilewright.passes.quantize.refusals import refusal
from tilewright.passes.quantize.rounding import rounded
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread

_MOST, _STEPS = 127, 255  # of int8, as quantize has it
_FREE = _MOST + 1  # no value is known before
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ClusterWeights:
    """Leave each layer `values` different weights, counted in steps of each output's scale.

    Weights are packed by how often each value is there, as Vela does for Ethos-U: they take
    less flash, and what waits for them waits less. Nothing is gained on the other targets. Put
    it behind pruning, and `quantize` behind it; zeros stay zeros. The values are integers from
    -127 to 127, those that `quantize` makes of the weights, and the best that there are for a
    layer's. With calibration data each weight is rounded in view of what was rounded before it,
    and layers are fitted to what the network so far gives them (refit.py): the answers stay
    nearer than with the same values and each weight rounded by itself; `damp` says how little
    correlations of examples are trusted. Grouped convolutions, and all layers without data, are
    rounded to the nearest value.
    """

    values: int = 32
    damp: float = 0.05
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "cluster-weights"
    source: ClassVar[str] = (
        'Han et al., "Deep Compression" (2016), section 3; rounding by Frantar et al., "GPTQ" '
        "(2023)"
    )
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        if not 3 <= self.values <= _STEPS:
            raise unusable(self, "values", f"a whole number from 3 to {_STEPS}, such as 32")
        check_positive(self, "damp")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Cluster every layer."""
        dense = graph.edit().sorted()
        edited = dense.edit()
        notes: list[Note] = []
        layers = [la for la in weighted_layers(edited) if self._takes(edited, la, notes)]
        fitted = [la for la in layers if la.groups == 1 and linear_layer(la.node) is not None]
        if context.calibration is None:
            fitted = []
        for layer in layers:
            if layer not in fitted:
                layer.replace(self._nearest(layer))
        if context.calibration is not None and fitted:
            with one_blas_thread():
                self._fit(dense, edited, fitted, context.calibration, context)
        return Outcome(edited, tuple(notes))

    def _fit(
        self,
        dense: Graph,
        edited: Graph,
        layers: Sequence[Layer],
        calibration: Calibration,
        context: Context,
    ) -> None:
        """Round layers, in order, to what each gave in the dense network."""
        pair = Pair(calibration, dense, seed=context.seed)
        uses = use_counts(edited)
        done = 0
        for members in siblings(layers):
            done += len(members)
            told = f"{members[-1].name} ({done} of {len(layers)})"
            context.report(f"{self.name}: {told}")
            seen = seen_by(members, pair, edited, uses)
            for layer in members:
                its = fit(layer, seen, self.damp, uses)
                (problem,) = its.problems
                energy = np.diag(problem.hessian)
                grid = Grid.of(problem.target, layer.matrix() != 0, energy, self.values)
                solved = rounded(problem.target, problem.hessian, grid.nearest)
                settle(layer, its, uses, [solved])

    def _nearest(self, layer: Layer) -> np.ndarray:
        weights = layer.matrix()
        grid = Grid.of(weights, weights != 0, np.ones(weights.shape[1]), self.values)
        columns = [grid.nearest(j, column) for j, column in enumerate(weights.T)]
        return np.stack(columns, axis=1)

    def _takes(self, graph: Graph, layer: Layer, notes: list[Note]) -> bool:
        reason = refusal(graph, layer, self.skip)
        if reason:
            notes.append(Note(layer.name, f"not clustered: {reason}"))
        return not reason


class Grid(NamedTuple):
    """The values that weights of a layer may have: those of a codebook times an output's scale.

    `scales` is (outputs,); `known`, (outputs, inputs), holds integers that are known before:
    zeros, and the largest weight of each output, which its scale is made of.
    """

    scales: np.ndarray
    codebook: np.ndarray
    known: np.ndarray

    @classmethod
    def of(
        cls, weights: np.ndarray, kept: np.ndarray, energy: np.ndarray, values: int
    ) -> "Grid":
        """Return the best one for a matrix, whose inputs have an `energy`, where it is kept."""
        counts = np.zeros(_STEPS)
        scales = np.empty(len(weights))
        known = np.where(kept, np.int16(_FREE), np.int16(0))
        # Row by row: large layers are large enough once.
        for row, (all_of_it, is_kept) in enumerate(zip(weights, kept, strict=True)):
            left = np.where(is_kept, all_of_it, 0.0)
            peak = float(left[np.abs(left).argmax()])
            scales[row] = max((abs(peak) or 1.0) / _MOST, _LEAST_SCALE)
            steps = np.rint(left / scales[row]).astype(np.int64) + _MOST
            worth = scales[row] ** 2 * energy * is_kept
            counts += np.bincount(steps, weights=worth, minlength=_STEPS)
            known[row, np.abs(left).argmax()] = np.sign(peak) * _MOST
        return cls(scales, best_codebook(counts, values), known)

    def nearest(self, j: int, column: np.ndarray) -> np.ndarray:
        """Return the nearest weights of input j for what its column is, (outputs,)."""
        middles = (self.codebook[1:] + self.codebook[:-1]) / 2
        steps = self.codebook[np.searchsorted(middles, column / self.scales)]
        known = self.known[:, j]
        return np.asarray(np.where(known == _FREE, steps, known) * self.scales)
