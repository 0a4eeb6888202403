"""Prune in the tiles that the target's kernels execute, and refit what is left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Layout, Pattern, Tile, parse_layout
from tilewright.options import (
    check_below_one,
    check_name,
    check_positive,
    check_share,
    parsed,
    unusable,
)
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.allocation import (
    ALLOCATORS,
    UNIFORM,
    Question,
    Removal,
    allocators_of,
    check_allocation,
    check_read,
    healer,
)
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.candidates import candidates, cannot_change
from tilewright.passes.prune.choose_tiles import Choice, by_loss, by_magnitude, drop_smallest
from tilewright.passes.prune.probe import HELD_OUT, changed
from tilewright.passes.prune.refit import Seen, fit, seen_by, settle
from tilewright.passes.prune.score_weights import SCORES, Weights
from tilewright.passes.prune.scoring import OBS, check_criterion, criteria_of
from tilewright.plan import Plan
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread

_MOST = 0.9  # of a layer's tiles that may go
_STEPS = 32  # in which tiles go, of all
_LAYOUTS = 'outputs x inputs, such as "4x1", or kept:of, such as "2:4"'
_ROUNDED = 1e-5  # how far plans round shares


@dataclass(frozen=True)
class PruneTiles:
    """Set whole tiles of weights to zero: `sparsity` of the tiles of every layer.

    `allocate` shares the tiles that go out among the layers (allocation.py): "uniform"; "erk",
    by the layers' shapes; "global", "dp" and "spdy", which measure what each layer does to the
    network's answers (probe.py) and save `sparsity` of the multiplications in these layers;
    "plasticity", by what training, in the pass `heal` behind, leaves of that; "entropic", by
    how little a block changes the residual stream; "prioritized", which stops where the answers
    agree with the dense ones to less than `floor`, 1 - their relative squared error; and
    "sensitivity", which takes what the floor allows.

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

    `damp` is added to the Hessian's diagonal, relative to its mean. The first and last layer
    (`ends`), layers with fewer than `smallest` weights, grouped convolutions (`depthwise`,
    by magnitude only) and layers named in `skip` stay dense. A plan in the context decides
    sparsity and tile layer by layer instead; layers it does not name stay dense.
    """

    sparsity: float = 0.6
    criterion: str = "obs"
    allocate: str = "uniform"
    floor: float = 0.97
    rows: str = "uniform"
    tile: str = ""
    damp: float = 0.01
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
        if self.tile and isinstance(parsed(self, "tile", parse_layout, _LAYOUTS), Pattern):
            for option in ("allocate", "rows"):
                if getattr(self, option) != "uniform":
                    wanted = f'"uniform" with tile={self.tile}, which leaves nothing to share'
                    raise unusable(self, option, wanted)

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Prune every admissible layer.

        Raises UnusableInput where criterion or allocator have not what they need, or
        rows="global" nothing to tell rows apart by.
        """
        if context.plan is None:
            check_allocation(self.name, self.allocate, context)
        if self.rows == "global" and (context.calibration is None or self.criterion != OBS):
            raise UnusableInput(
                "prune-tiles: rows=global compares what tiles do to a layer's outputs: "
                "it needs criterion=obs and example inputs. Give --calibration FILE.npz."
            )
        dense = graph.edit().sorted()
        pruned = dense.edit()
        notes: list[Note] = []
        if context.plan is not None:
            choices = planned_tiles(pruned, context.plan)
            notes += _unexecuted(choices, context)
        else:
            found = candidates(
                pruned,
                ends=self.ends,
                smallest=self.smallest,
                grouped=self.depthwise,
                skip=self.skip,
            )
            notes += found.notes
            fixed = parse_layout(self.tile) if self.tile else None
            tile_for, precision = context.target.tile_for, context.precision
            choices = {
                layer.name: _choice(fixed or tile_for(layer, precision), self.sparsity)
                for layer in found.layers
            }
        layers = [layer for layer in linear_layers(pruned) if layer.name in choices]
        for layer in layers:
            gathers = context.target.gathers_rows(layer, context.precision)
            choices[layer.name] = choices[layer.name]._replace(gathers=gathers)
        calibration, criterion = context.calibration, self.criterion
        if calibration is None and criterion == OBS:
            criterion = "magnitude"
            notes += self._warned(context, layers)
        check_criterion(self.name, criterion, dense, calibration)
        solved = [layer for layer in layers if layer.groups == 1]
        for layer in layers:
            if layer.groups > 1:
                drop_smallest(layer, layer.matrix(), choices[layer.name])
        with one_blas_thread():
            asked = Weights(dense, solved, calibration, self.damp, context.seed)
            if self.allocate != UNIFORM and context.plan is None and solved:
                choices |= self._allocated(asked, criterion, choices, context)
            magnitudes = self._magnitudes(criterion, asked)
            if calibration is None or not self._walks(criterion):
                for layer in solved:
                    drop_smallest(layer, magnitudes[layer.name], choices[layer.name])
            else:
                self._refit(asked, pruned, magnitudes, choices, context)
        return Outcome(pruned, tuple(notes))

    def _walks(self, criterion: str) -> bool:
        """Say whether layers must be looked at on examples, to search or to refit."""
        return self.refit or criterion == OBS

    def _magnitudes(self, criterion: str, asked: Weights) -> dict[str, np.ndarray]:
        scored = criterion != OBS and asked.layers
        return SCORES[criterion](asked) if scored else {}

    def _warned(self, context: Context, layers: list[Layer]) -> list[Note]:
        if not layers:
            return []
        reason = "pruned by magnitude and not refitted: there is no calibration data"
        context.report(
            "prune-tiles: no calibration data, so tiles are chosen by magnitude and nothing is "
            "refitted; expect the answers to change a lot. Give --calibration FILE.npz."
        )
        return [Note(layer.name, reason) for layer in layers]

    def _allocated(
        self, asked: Weights, criterion: str, choices: Mapping[str, Choice], context: Context
    ) -> dict[str, Choice]:
        """Return the choices with the sparsities that `allocate` finds."""
        fitted = held = asked.calibration
        if asked.calibration is not None:
            fitted, held = asked.calibration.held_out(HELD_OUT)
        asked = asked._replace(calibration=fitted)
        layers, dense = asked.layers, asked.dense
        places = {layer.name: _place(layer, choices[layer.name].layout) for layer in layers}

        def removals() -> Iterator[Removal]:
            assert fitted is not None, "check_allocation admits only what asks for no answers"
            magnitudes = self._magnitudes(criterion, asked)
            pair = Pair(fitted, dense, seed=context.seed)
            for members in _siblings(layers):
                seen = seen_by(members[0], pair, dense) if self._walks(criterion) else None
                for layer in members:
                    values = magnitudes.get(layer.name)
                    choice = choices[layer.name]
                    without = partial(self._without, dense, choice, values, seen, layer.name)
                    yield Removal(places[layer.name], without)

        question = Question(
            [places[layer.name] for members in _siblings(layers) for layer in members],
            removals,
            dense,
            held,
            self.sparsity,
            self.floor,
            lambda text: context.report(f"{self.name}: {text}"),
            heal=healer(dense, fitted, context),
            seed=context.seed,
        )
        removed = ALLOCATORS[self.allocate].of(question)
        return {
            place.name: choices[place.name]._replace(sparsity=count / place.entries)
            for place, count in zip(question.places, removed, strict=True)
        }

    def _without(
        self,
        dense: Graph,
        choice: Choice,
        magnitudes: np.ndarray | None,
        seen: Seen | None,
        name: str,
        count: int,
    ) -> dict[str, np.ndarray]:
        """Return the constants of one layer without so many of its columns of tiles."""
        graph = dense.edit()
        (layer,) = (layer for layer in linear_layers(graph) if layer.name == name)
        share = count / _place(layer, choice.layout).entries
        choice = choice._replace(sparsity=share)
        if seen is not None:
            self._solve(layer, choice, magnitudes, seen, use_counts(graph))
        elif magnitudes is not None:
            drop_smallest(layer, magnitudes, choice)
        return changed(dense, graph)

    def _refit(
        self,
        asked: Weights,
        pruned: Graph,
        magnitudes: Mapping[str, np.ndarray],
        choices: Mapping[str, Choice],
        context: Context,
    ) -> None:
        assert asked.calibration is not None
        pair = Pair(asked.calibration, asked.dense, seed=context.seed)
        uses = use_counts(pruned)
        done = 0
        for members in _siblings(asked.layers):
            done += len(members)
            context.report(f"{self.name}: {members[-1].name} ({done} of {len(asked.layers)})")
            seen = seen_by(members[0], pair, pruned)
            for layer in members:
                values = magnitudes.get(layer.name)
                self._solve(layer, choices[layer.name], values, seen, uses)

    def _solve(
        self,
        layer: Layer,
        choice: Choice,
        magnitudes: np.ndarray | None,
        seen: Seen,
        uses: Mapping[str, int],
    ) -> None:
        """Prune one layer by magnitudes, or where there are none by elimination."""
        fitted = fit(layer, seen, self.damp, uses)
        (problem,) = fitted.problems
        if magnitudes is None:
            support = by_loss(problem, choice, layer.taps, self.rows)
        else:
            support = by_magnitude(magnitudes, choice, layer.taps)
        if self.refit:
            settle(layer, fitted, uses, [support.refitted(problem)])
        else:
            layer.replace(support.masked(layer.matrix()))


def planned_tiles(graph: Graph, plan: Plan) -> dict[str, Choice]:
    """Return tile and sparsity of each layer that a plan prunes.

    Levels without "sparsity" are other passes' and are passed over, but for patterns, which
    have one of their own. Raises one UnusableInput that lists everything wrong with the rest.
    """
    layers = {layer.name: layer for layer in linear_layers(graph)}
    choices: dict[str, Choice] = {}
    wrong: list[str] = []
    for item, level in sorted(plan.levels.items()):
        tile = str(level.get("tile", "1x1"))
        try:
            layout: Layout | None = parse_layout(tile)
        except ValueError:
            layout = None
        own = layout.sparsity if isinstance(layout, Pattern) else None
        sparsity = level.get("sparsity", own)
        if sparsity is None:
            continue
        if item not in layers:
            wrong.append(f'"{item}" is not a linear layer of this model')
        elif reason := cannot_change(graph, layers[item]):
            wrong.append(f'"{item}" cannot be pruned: {reason}')
        elif isinstance(sparsity, str) or not 0 <= sparsity < 1:
            wrong.append(
                f'sparsity of "{item}" is {sparsity!r}, not a number from 0 to below 1'
            )
        elif layout is None:
            wrong.append(f'tile of "{item}" is "{tile}", not like "4x1" or "2:4"')
        elif own is not None and abs(sparsity - own) > _ROUNDED:
            wrong.append(f'sparsity of "{item}" is {sparsity}, but {tile} makes it {own:g}')
        else:
            choices[item] = Choice(layout, float(sparsity))
    if wrong:
        raise UnusableInput(
            f"The plan cannot be applied: {'; '.join(wrong)}. "
            f"Correct it; the model's layers are {', '.join(layers) or 'none'}."
        )
    return choices


def _unexecuted(choices: Mapping[str, Choice], context: Context) -> list[Note]:
    """Note the layers whose tiles are none that the target's kernels skip."""
    target = context.target
    tiles = {order.tile for order in target.orders.get(context.precision, ())}
    known = ", ".join(sorted(map(str, tiles)))
    return [
        Note(name, f"tile {tile} is none that {target.name} skips ({known}): expect no speed")
        for name, (tile, *_) in choices.items()
        if tiles and tile not in tiles
    ]


def _choice(layout: Layout, sparsity: float) -> Choice:
    return Choice(layout, layout.sparsity if isinstance(layout, Pattern) else sparsity)


def _place(layer: Layer, layout: Layout) -> Place:
    """Describe a layer's columns of tiles; each saves multiplications."""
    assert isinstance(layout, Tile), "a pattern leaves nothing to allocate"
    blocks = layout.grid((layer.outputs, layer.inputs))[1]
    saves = layer.positions * layer.weight.values.size / blocks
    step = max(1, blocks // _STEPS)
    shape = (layer.outputs, *layer.weight.shape[2:], layer.inputs // layer.taps)
    return Place(layer.name, blocks, int(_MOST * blocks), step, saves, shape, (layer.name,))


def _siblings(layers: Iterable[Layer]) -> list[list[Layer]]:
    """Group layers that multiply the same matrix, in order."""
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(_input_matrix(layer), []).append(layer)
    return list(groups.values())


def _input_matrix(layer: Layer) -> tuple[object, ...]:
    """Return what identifies the matrix X that a layer multiplies: equal for siblings."""
    if layer.node.op != "Conv":
        return (layer.source.name,)
    geometry = ("kernel_shape", "strides", "dilations", "pads", "auto_pad")
    attrs = [str(layer.node.attrs.get(key)) for key in geometry]
    return (layer.source.name, tuple(layer.weight.shape[1:]), *attrs)
