"""What removing tiles of one layer alone does to the answers."""

from collections.abc import Mapping
from functools import partial

from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.choose_tiles import Choice, by_loss
from tilewright.passes.prune.descent import settle_before_activation
from tilewright.passes.prune.refit import Seen, fit, seen_by
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread


class TileErrors:
    """The dense network, in which one layer at a time is pruned and refitted by OBS."""

    def __init__(
        self, dense: Graph, fitted: Calibration, held: Calibration, *, damp: float, seed: int
    ) -> None:
        """Take the samples that layers are fitted to, and those that answers are compared on.

        `dense` must have its nodes in order. Raises UnusableInput where its answers are not
        floats, or not finite.
        """
        self._dense = dense
        self._damp = damp
        self._pair = Pair(fitted, dense, seed=seed)
        self._answers = Answers(dense, held)
        self._seen: tuple[str, Layer, Seen] | None = None

    def of(self, layer: str, choice: Choice) -> float:
        """Return `Answers.error` with one layer pruned. Layers must be asked for in order."""
        graph = self._dense.edit()
        (mine,) = (found for found in linear_layers(graph) if found.name == layer)
        uses = use_counts(graph)
        with one_blas_thread():
            first, seen = self._seen_by(mine, uses)
            its = fit(mine, seen, self._damp, uses)
            (problem,) = its.problems
            support = by_loss(problem, choice, mine.taps, "uniform")
            settle_before_activation(
                mine,
                its,
                uses,
                [support.refitted(problem)],
                support.rows(mine.inputs),
                partial(self._pair.columns, first, self._dense),
                graph,
            )
        return self._answers.error(graph)

    def _seen_by(self, layer: Layer, uses: Mapping[str, int]) -> tuple[Layer, Seen]:
        """Return what a layer reads, and the first layer that reads it and was looked at."""
        # Convolutions that read one tensor may see other windows of it.
        key = layer.name if layer.node.op == "Conv" else layer.source.name
        if self._seen is None or self._seen[0] != key:
            self._seen = key, layer, seen_by([layer], self._pair, self._dense, uses)
        return self._seen[1:]
