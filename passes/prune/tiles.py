"""Prune in the tiles that the target's kernels execute, and refit what is left."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Pattern, parse_layout
from tilewright.options import (
    check_below_one,
    check_count,
    check_name,
    check_positive,
    check_share,
    parsed,
    unusable,
)
from tilewright.passes.prune.allocation import (
    UNIFORM,
    allocators_of,
    check_allocation,
    check_read,
    share_out,
)
from tilewright.passes.prune.choose_tiles import Choice, drop_smallest
from tilewright.passes.prune.layouts import layouts_of
from tilewright.passes.prune.question import Removal
from tilewright.passes.prune.score_weights import SCORES, Weights
from tilewright.passes.prune.scoring import (
    OBS,
    check_classes,
    check_criterion,
    criteria_of,
    without_data,
)
from tilewright.passes.prune.take_tiles import TakingTiles, place_of
from tilewright.protocol import Context, Note, Outcome
from tilewright.threads import one_blas_thread

_LAYOUTS = 'outputs x inputs, such as "4x1", or kept:of, such as "2:4"'


@dataclass(frozen=True)
class PruneTiles:
    """Set whole tiles of weights to zero: `sparsity` of the tiles of every layer.

    `allocate` shares the tiles that go out among the layers (allocation.py): "uniform"; "erk",
    by the layers' shapes; "global", "dp" and "spdy", which measure what each layer does to the
    network's answers (probe.py; of many rows of tiles 32 speak for all), and save `sparsity` of
    the multiplications in these layers; "plasticity", by what training, in the pass `heal`
    behind, leaves of that; "entropic", by how little a block changes the residual stream;
    "prioritized", which stops where the answers agree with the dense ones to less than `floor`,
    1 - their relative squared error; and "sensitivity", which takes what the floor allows.

    A tile is the target's for that layer, or `tile`, such as "4x1" (outputs x inputs). Each row
    of tiles of a layer loses as many; with rows="global" those lose more that suffer less from
    it. `tile` may also be a pattern, such as "2:4": of every four neighbouring input channels
    of an output two weights stay, and neither `sparsity` nor how to share it is asked.

    Which tiles go is said by `criterion` (scoring.py): with "obs" those that hurt least
    (obs.py), layer by layer, else those with the smallest squared sums, of the weights or what
    score_weights.py puts in their place. With calibration data each layer is then refitted to
    the dense network's outputs, on what the already pruned network gives it; a bias takes part
    as the weight of one more input, the constant 1, which is never pruned: the Gram matrices
    are centred. `refit=false` leaves weights as they are. Without data "obs" becomes
    "magnitude".

    What is fitted also makes up for what the residual stream lacks that a layer's output is
    added to, and where an activation follows it is fitted to what that gives (descent.py).
    `damp` says how little the examples' correlations are trusted (obs.damped): what
    is best went from 0.02 to 0.2 on four networks with 256 to 1,024 samples.

    The first and last layer (`ends`), layers with fewer than `smallest` weights, grouped
    convolutions (`depthwise`, by magnitude only) and layers named in `skip` stay dense. A plan
    in the context decides sparsity and tile layer by layer instead; layers it does not name
    stay dense.
    """

    sparsity: float = 0.6
    criterion: str = "obs"
    allocate: str = "uniform"
    floor: float = 0.97
    rows: str = "uniform"
    tile: str = ""
    damp: float = 0.05
    ends: bool = False
    smallest: int = 4096
    depthwise: bool = False
    skip: tuple[str, ...] = ()
    refit: bool = True

    name: ClassVar[str] = "prune-tiles"
    source: ClassVar[str] = 'Frantar & Alistarh, "Optimal Brain Compression" (2022), with tiles'
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_below_one(self, "sparsity")
        check_name(self, "criterion", criteria_of(self.name))
        check_name(self, "allocate", allocators_of(self))
        check_share(self, "floor")
        check_read(self)
        check_name(self, "rows", ("uniform", "global"))
        check_positive(self, "damp")
        check_count(self, "smallest")
        if self.tile and isinstance(parsed(self, "tile", parse_layout, _LAYOUTS), Pattern):
            for option in ("allocate", "rows"):
                if getattr(self, option) != "uniform":
                    wanted = f'"uniform" with tile={self.tile}, which leaves nothing to share'
                    raise unusable(self, option, wanted)

    def check(self, context: Context, /) -> None:
        """Raise UnusableInput where criterion, allocator or `rows` have not what they need."""
        if context.plan is None:
            check_allocation(self, context)
        check_criterion(self.name, self.criterion, context)
        if self.rows == "global" and (context.calibration is None or self.criterion != OBS):
            raise UnusableInput(
                "prune-tiles: rows=global compares what tiles do to a layer's outputs: "
                "it needs criterion=obs and example inputs. Give --calibration FILE.npz."
            )

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Prune every admissible layer.

        Raises UnusableInput as `check`, and where a criterion asks for classes that are none.
        """
        self.check(context)
        check_classes(self.name, self.criterion, graph)
        dense = graph.edit().sorted()
        pruned = dense.edit()
        choices, notes = layouts_of(
            pruned,
            context,
            self.sparsity,
            self.tile,
            ends=self.ends,
            smallest=self.smallest,
            grouped=self.depthwise,
            skip=self.skip,
        )
        if context.plan is not None or self.tile:
            notes += _unexecuted(choices, context)
        layers = [layer for layer in linear_layers(pruned) if layer.name in choices]
        notes += _unread(layers, context)
        names = [layer.name for layer in layers]
        criterion, warnings = without_data(self.name, self.criterion, names, context)
        for layer in layers:
            if layer.groups > 1:
                drop_smallest(layer, layer.matrix(), choices[layer.name])
        solved = [layer for layer in layers if layer.groups == 1]
        with one_blas_thread():
            asked = Weights(dense, solved, context.calibration, context.seed)
            if self.allocate != UNIFORM and context.plan is None and solved:
                choices |= self._allocated(asked, criterion, choices, context)
            self._taking(criterion, asked).take(
                pruned,
                solved,
                choices,
                context.calibration,
                lambda text: context.report(f"{self.name}: {text}"),
            )
        return Outcome(pruned, (*notes, *warnings))

    def _taking(self, criterion: str, asked: Weights) -> TakingTiles:
        scored = criterion != OBS and asked.layers
        magnitudes = SCORES[criterion](asked) if scored else {}
        return TakingTiles(
            asked.dense, magnitudes, self.rows, self.refit, self.damp, asked.seed
        )

    def _allocated(
        self, asked: Weights, criterion: str, choices: Mapping[str, Choice], context: Context
    ) -> dict[str, Choice]:
        """Return the choices with the sparsities that `allocate` finds."""
        places = {its.name: place_of(its, choices[its.name].layout) for its in asked.layers}

        def removals(fitted: Calibration | None) -> Iterator[Removal]:
            assert fitted is not None, "check_allocation admits only what asks for no answers"
            taking = self._taking(criterion, asked._replace(calibration=fitted))
            return taking.removals(asked.layers, choices, places, fitted)

        removed = share_out(
            self, list(places.values()), removals, lambda _: (), asked.dense, context
        )
        return {
            name: choices[name]._replace(sparsity=count / place.entries)
            for (name, place), count in zip(places.items(), removed, strict=True)
        }


def _unread(layers: Sequence[Layer], context: Context) -> list[Note]:
    """Note, and report once, the layers whose weights are no float32: no zeros are skipped."""
    odd = [layer for layer in layers if layer.weight.dtype != np.float32]
    if odd:
        kinds = ", ".join(sorted({str(layer.weight.dtype) for layer in odd}))
        context.report(
            f"prune-tiles: {len(odd)} of {len(layers)} layers have weights in {kinds}, but "
            f"{context.target.name} skips zeros in float32 alone: expect no speed there. "
            "Convert the model to float32 first."
        )
    return [
        Note(layer.name, f"weights in {layer.weight.dtype} are none whose zeros are skipped")
        for layer in odd
    ]


def _unexecuted(choices: Mapping[str, Choice], context: Context) -> list[Note]:
    """Note, and report once, the layers whose tiles are none that the target's kernels skip."""
    target = context.target
    tiles = {order.tile for order in target.orders.get(context.precision, ())}
    skipped = {*tiles, *target.patterns}
    odd = {
        name: its.layout for name, its in choices.items() if tiles and its.layout not in skipped
    }
    known = ", ".join(sorted(map(str, skipped)))
    if odd:
        asked = ", ".join(sorted({str(layout) for layout in odd.values()}))
        context.report(
            f"prune-tiles: {target.name} skips tiles of {known}, not of {asked}: expect no "
            f"speed in {len(odd)} of {len(choices)} layers."
        )
    return [
        Note(name, f"tile {tile} is none that {target.name} skips ({known}): expect no speed")
        for name, tile in odd.items()
    ]
