"""Prune in rounds, train in between, and let pruned tiles come back."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph, constant
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Tile
from tilewright.options import check_below_one, check_count, parsed, unusable
from tilewright.passes.heal.checkpoint import checkpoint_of
from tilewright.passes.heal.regrow import exchanged, largest, mean_squares
from tilewright.passes.heal.training import Training, check_options, examples
from tilewright.passes.prune.layouts import layouts_of
from tilewright.passes.prune.obs import spread
from tilewright.passes.prune.schedule import cosine, cubic
from tilewright.protocol import Context, Feeds, Note, Outcome

_PRUNING = 2 / 3  # of all steps, over which the rounds are spread


@dataclass(frozen=True)
class PruneGradually:
    """Set whole tiles of weights to zero little by little, and train what is left meanwhile.

    In each of `rounds` the smallest tiles of all layers together go, by their mean square,
    until there are as many at zero as a cubic schedule says: from `start`, which is what is
    zero already, to `sparsity` in the last round. Then `regrow` of each layer's remaining tiles
    make room for as many others, the smallest for those at zero with the largest gradients;
    that share falls by a cosine to none in the last round. What regrows starts at zero. Until
    the next round, weights at zero stay there. With regrow=0 this is gradual magnitude pruning.

    The rounds are spread over the first two thirds of the training, which is that of `heal`
    (passes/heal/align.py, also for `epochs`, `rate`, `batch` and `loss`): without labels,
    towards the dense network's internal states. From the last round on the weights that are
    best on the samples held out are kept.

    A tile is the target's for that layer, or `tile`, such as "4x1" (outputs x inputs). Rows of
    tiles lose different numbers, but keep one tile at least. The first and last layer (`ends`),
    layers with fewer than `smallest` weights, grouped convolutions and layers named in `skip`
    stay dense. A plan in the context decides sparsity and tile layer by layer instead; layers
    it does not name stay dense.

    That tiles are pruned where the paper prunes weights, and the loss, are ours. The gradients
    are those of one batch, as in the paper, but of the network that was just pruned: the dense
    one's loss has none. Needs torch.
    """

    sparsity: float = 0.6
    tile: str = ""
    rounds: int = 10
    regrow: float = 0.5
    start: float = 0.0
    epochs: int = 12
    rate: float = 2e-3
    batch: int = 16
    loss: str = "cosine"
    ends: bool = False
    smallest: int = 4096
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "prune-gradually"
    source: ClassVar[str] = "GraNet (arXiv 2106.10404), with tiles and the loss of STARFISH"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_options(self)
        check_below_one(self, "sparsity", "regrow")
        check_count(self, "smallest")
        if not 0 <= self.start <= self.sparsity:
            raise unusable(self, "start", "a share from 0 to sparsity")
        if self.rounds < 1:
            raise unusable(self, "rounds", "a whole number from 1 on")
        if self.tile:
            parsed(self, "tile", Tile.parse, 'outputs x inputs, such as "4x1"')

    def check(self, context: Context, /) -> None:
        """Raise UnusableInput without calibration data or torch."""
        examples(self, context)

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Prune every admissible layer.

        Raises UnusableInput without calibration data or torch, where there is no gradient
        through the network, and where the data are too few for so many rounds.
        """
        calibration = examples(self, context)
        edited = graph.edit().sorted()
        dense = context.dense or graph
        pools, notes = self._pools(edited, context)
        if not pools:
            return Outcome(edited, tuple(notes))
        training = Training(self, edited, dense, calibration, context.seed)
        starts = self._starts(training.steps_per_epoch)

        def before(step: int, batch: Sequence[Feeds]) -> None:
            if step in starts:
                self._round(starts.index(step) + 1, training, pools, batch)

        checkpoint = checkpoint_of(self, [edited, dense], calibration, context)
        return Outcome(training.run(checkpoint, context.report, before), tuple(notes))

    def _round(
        self, number: int, training: Training, pools: Sequence["_Pool"], batch: Sequence[Feeds]
    ) -> None:
        """Drop tiles until there are as few as after this round, and let others come back."""
        members = [member for pool in pools for member in pool.members]
        weights = training.weights()
        kept = [
            tiles
            for pool in pools
            for tiles in largest(
                [member.mean_squares(weights) for member in pool.members],
                float(cubic(number, 0, self.rounds, pool.start, pool.sparsity)),
            )
        ]
        training.change(_masks(members, kept))
        if share := float(cosine(number, 0, self.rounds, self.regrow)):
            gradients = training.gradients(batch)
            kept = [
                exchanged(tiles, m.mean_squares(weights), m.mean_squares(gradients), share)
                for m, tiles in zip(members, kept, strict=True)
            ]
            training.change(_masks(members, kept))
        if number == self.rounds:
            training.settle()

    def _pools(self, graph: Graph, context: Context) -> tuple[list["_Pool"], list[Note]]:
        """Return which layers share a number of tiles, and notes on those that stay dense."""
        choices, notes = layouts_of(
            graph,
            context,
            self.sparsity,
            self.tile,
            ends=self.ends,
            smallest=self.smallest,
            grouped=False,
            skip=self.skip,
        )
        layers = [layer for layer in linear_layers(graph) if layer.name in choices]
        tiles = {n: c.layout for n, c in choices.items() if isinstance(c.layout, Tile)}
        notes += [
            Note(layer.name, "patterns are not pruned gradually; use prune-tiles")
            for layer in layers
            if layer.name not in tiles
        ]
        layers = [layer for layer in layers if layer.name in tiles]
        trained = [layer for layer in layers if layer.weight.dtype == np.float32]
        notes += [
            Note(layer.name, "its weights are not float32, and no others are trained")
            for layer in layers
            if layer not in trained
        ]
        members = [_Member(layer, tiles[layer.name]) for layer in trained]
        if context.plan is None:
            return ([_Pool(members, self.start, self.sparsity)] if members else []), notes
        ends = [choices[layer.name].sparsity for layer in trained]
        pairs = zip(members, ends, strict=True)
        return [_Pool([member], min(self.start, end), end) for member, end in pairs], notes

    def _starts(self, steps_per_epoch: int) -> list[int]:
        """Return the steps before which the rounds begin. Raises UnusableInput."""
        available = max(1, int(_PRUNING * self.epochs * steps_per_epoch))
        if self.rounds > available:
            raise UnusableInput(
                f"prune-gradually: {self.rounds} rounds do not fit into {available} steps, "
                f"which is two thirds of the training: {self.epochs} epochs of "
                f"{steps_per_epoch} batches. Give more epochs or data, or a smaller batch, or "
                f"rounds={available}."
            )
        return [index * available // self.rounds for index in range(self.rounds)]


class _Member(NamedTuple):
    """A layer, and the tiles that it is pruned in."""

    layer: Layer
    tile: Tile

    def mean_squares(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return those of the tiles of what is like the layer's weights, given by name."""
        name = self.layer.weight.name
        alike = dataclasses.replace(self.layer, weight=constant(name, arrays[name]))
        return mean_squares(alike.matrix(), self.tile)

    def mask(self, kept: np.ndarray) -> np.ndarray:
        """Return where weights are in tiles that are kept, as the layer stores them."""
        weight = self.layer.weight
        alike = dataclasses.replace(self.layer, weight=constant(weight.name, weight.values))
        matrix = alike.matrix()
        alike.replace(spread(kept, self.tile, (matrix.shape[0], matrix.shape[1])))
        return np.asarray(alike.weight.values != 0)


class _Pool(NamedTuple):
    """Layers whose tiles compete with each other, and their sparsity before and after all."""

    members: Sequence[_Member]
    start: float
    sparsity: float


def _masks(members: Sequence[_Member], kept: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    pairs = zip(members, kept, strict=True)
    return {str(member.layer.weight.name): member.mask(tiles) for member, tiles in pairs}
