"""Prune in the tiles that the target's kernels execute, and refit what is left."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Layout, Pattern, Tile, parse_layout
from tilewright.passes.prune import obs
from tilewright.passes.prune.allocate import Place
from tilewright.passes.prune.allocation import (
    ALLOCATORS,
    NAMES,
    UNIFORM,
    Question,
    Removal,
    check_allocation,
)
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.candidates import candidates, cannot_change
from tilewright.passes.prune.matching import row_order
from tilewright.passes.prune.probe import HELD_OUT, changed
from tilewright.passes.prune.refit import Seen, refit_layer, seen_by
from tilewright.plan import Plan
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread


class Choice(NamedTuple):
    """How a layer is pruned; with `gathers` the rows of a tile may stand anywhere."""

    layout: Layout
    sparsity: float
    gathers: bool = False


_MOST = 0.9  # of a layer's tiles that may go
_STEPS = 32  # in which tiles go, of all
_ROUNDED = 1e-5  # how far plans round shares


@dataclass(frozen=True)
class PruneTiles:
    """Set whole tiles of weights to zero: `sparsity` of the tiles of every layer.

    `allocate` shares the tiles that go out among the layers (allocation.py): "uniform"; "erk",
    by the layers' shapes; "global", "dp" and "spdy", which measure what each layer does to the
    network's answers (probe.py) and save `sparsity` of the multiplications in these layers;
    "prioritized", which stops where the answers agree with the dense ones to less than `floor`,
    1 - their relative squared error; and "sensitivity", which takes what the floor allows.

    A tile is the target's for that layer, or `tile`, such as "4x1" (outputs x inputs). Each row
    of tiles of a layer loses as many; with rows="global" those lose more that suffer less from
    it. `tile` may also be a pattern, such as "2:4": of every four neighbouring input channels
    of an output two weights stay, and neither `sparsity` nor how to share it is asked. With
    calibration data the tiles that hurt least are found by "obs" (obs.py), layer by layer:
    each layer reads what the already pruned network gives it and is refitted to the dense
    network's outputs. A bias takes part as the weight of one more input, the constant 1, which
    is never pruned: the Gram matrices are centred. Without data, or with
    criterion="magnitude", the tiles with the smallest squared sums go; nothing is refitted.

    `damp` is added to the Hessian's diagonal, relative to its mean. The first and last layer
    (`ends`), layers with fewer than `smallest` weights, grouped convolutions (`depthwise`,
    by magnitude only) and layers named in `skip` stay dense. A plan in the context decides
    sparsity and tile layer by layer instead; layers it does not name stay dense.
    """

    sparsity: float = 0.6
    criterion: str = "obs"
    allocate: str = UNIFORM
    floor: float = 0.97
    rows: str = "uniform"
    tile: str = ""
    damp: float = 0.01
    ends: bool = False
    smallest: int = 4096
    depthwise: bool = False
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "prune-tiles"
    source: ClassVar[str] = 'Frantar & Alistarh, "Optimal Brain Compression" (2022), with tiles'
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        if not 0 <= self.sparsity < 1:
            raise _wrong("sparsity", self.sparsity, "a share of at least 0 and below 1")
        if self.criterion not in ("obs", "magnitude"):
            raise _wrong("criterion", self.criterion, '"obs" or "magnitude"')
        if self.allocate not in NAMES:
            raise _wrong("allocate", self.allocate, f"one of {', '.join(NAMES)}")
        if not 0 <= self.floor <= 1:
            raise _wrong("floor", self.floor, "a share from 0 to 1, such as 0.97")
        if self.rows not in ("uniform", "global"):
            raise _wrong("rows", self.rows, '"uniform" or "global"')
        if not 0 < self.damp < np.inf:
            raise _wrong("damp", self.damp, "a positive number")
        if self.tile and isinstance(_parsed(self.tile), Pattern):
            for option in ("allocate", "rows"):
                if getattr(self, option) != "uniform":
                    wanted = f'"uniform" with tile={self.tile}, which leaves nothing to share'
                    raise _wrong(option, getattr(self, option), wanted)

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Prune every admissible layer.

        Raises UnusableInput where allocate="global" has nothing to measure answers on, or
        rows="global" nothing to tell rows apart by.
        """
        check_allocation(self.name, self.allocate, self.criterion, context)
        if self.rows == "global" and (
            context.calibration is None or self.criterion == "magnitude"
        ):
            raise UnusableInput(
                "prune-tiles: rows=global compares what tiles do to a layer's outputs: "
                "it needs criterion=obs and example inputs. Give --calibration FILE.npz."
            )
        dense = graph.edit().sorted()
        pruned = dense.edit()
        notes: list[Note] = []
        if context.plan is not None:
            choices = planned(pruned, context.plan)
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
            fixed = _parsed(self.tile) if self.tile else None
            tile_for, precision = context.target.tile_for, context.precision
            choices = {
                layer.name: _choice(fixed or tile_for(layer, precision), self.sparsity)
                for layer in found.layers
            }
        layers = [layer for layer in linear_layers(pruned) if layer.name in choices]
        for layer in layers:
            gathers = context.target.gathers_rows(layer, context.precision)
            choices[layer.name] = choices[layer.name]._replace(gathers=gathers)
        if context.calibration is None or self.criterion == "magnitude":
            if self.criterion == "obs" and layers:
                notes += self._warned(context, layers)
            for layer in layers:
                _drop_smallest(layer, choices[layer.name])
            return Outcome(pruned, tuple(notes))
        for layer in layers:
            if layer.groups > 1:
                _drop_smallest(layer, choices[layer.name])
        solved = [layer for layer in layers if layer.groups == 1]
        with one_blas_thread():
            if self.allocate != UNIFORM and context.plan is None:
                choices |= self._allocated(dense, solved, choices, context, context.calibration)
            self._refit(dense, pruned, solved, choices, context, context.calibration)
        return Outcome(pruned, tuple(notes))

    def _warned(self, context: Context, layers: list[Layer]) -> list[Note]:
        reason = "pruned by magnitude and not refitted: there is no calibration data"
        context.report(
            "prune-tiles: no calibration data, so tiles are chosen by magnitude and nothing is "
            "refitted; expect the answers to change a lot. Give --calibration FILE.npz."
        )
        return [Note(layer.name, reason) for layer in layers]

    def _allocated(
        self,
        dense: Graph,
        layers: list[Layer],
        choices: Mapping[str, Choice],
        context: Context,
        calibration: Calibration,
    ) -> dict[str, Choice]:
        """Return the choices with the sparsities that `allocate` finds."""
        fitted, held = calibration.held_out(HELD_OUT)
        places = {layer.name: _place(layer, choices[layer.name][0]) for layer in layers}

        def removals() -> Iterator[Removal]:
            pair = Pair(fitted, dense, seed=context.seed)
            for members in _siblings(layers):
                seen = seen_by(members[0], pair, dense)
                for layer in members:
                    yield Removal(
                        places[layer.name],
                        partial(self._without, dense, choices[layer.name], seen, layer.name),
                    )

        question = Question(
            [places[layer.name] for members in _siblings(layers) for layer in members],
            removals,
            dense,
            held,
            self.sparsity,
            self.floor,
            lambda text: context.report(f"prune-tiles: {text}"),
        )
        removed = ALLOCATORS[self.allocate](question)
        return {
            place.name: choices[place.name]._replace(sparsity=count / place.entries)
            for place, count in zip(question.places, removed, strict=True)
        }

    def _without(
        self, dense: Graph, choice: Choice, seen: Seen, name: str, count: int
    ) -> dict[str, np.ndarray]:
        """Return the constants of one layer without so many of its columns of tiles."""
        graph = dense.edit()
        (layer,) = (layer for layer in linear_layers(graph) if layer.name == name)
        share = count / _place(layer, choice.layout).entries
        self._solve(layer, choice._replace(sparsity=share), seen, use_counts(graph))
        return changed(dense, graph)

    def _refit(
        self,
        dense: Graph,
        pruned: Graph,
        layers: list[Layer],
        choices: Mapping[str, Choice],
        context: Context,
        calibration: Calibration,
    ) -> None:
        pair = Pair(calibration, dense, seed=context.seed)
        uses = use_counts(pruned)
        done = 0
        for members in _siblings(layers):
            done += len(members)
            context.report(f"prune-tiles: {members[-1].name} ({done} of {len(layers)})")
            seen = seen_by(members[0], pair, pruned)
            for layer in members:
                self._solve(layer, choices[layer.name], seen, uses)

    def _solve(self, layer: Layer, choice: Choice, seen: Seen, uses: Mapping[str, int]) -> None:
        layout, sparsity, gathers = choice
        choose = obs.tile_masks_by_loss if self.rows == "global" else obs.tile_masks

        def solve(target: np.ndarray, hessian: np.ndarray) -> np.ndarray:
            if isinstance(layout, Pattern):
                return obs.prune_pattern(target, hessian, layout, layer.taps)
            inverse = np.linalg.inv(hessian)
            order = np.arange(len(target))
            if gathers:
                order = row_order(target, np.diag(inverse), layout, sparsity)
            kept = choose(target[order], inverse, layout, sparsity)
            found = np.empty_like(target)
            found[order] = obs.refit(target[order], hessian, layout, kept)
            return found

        refit_layer(layer, seen, self.damp, uses, solve)


def planned(graph: Graph, plan: Plan) -> dict[str, Choice]:
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


def _drop_smallest(layer: Layer, choice: Choice) -> None:
    layout, sparsity, gathers = choice
    matrix = layer.matrix()
    if isinstance(layout, Pattern):
        kept = obs.smallest_of_pattern(matrix, layout, layer.taps)
    else:
        order = np.arange(len(matrix))
        if gathers:
            order = row_order(matrix, np.ones(layer.inputs), layout, sparsity)
        tiles = obs.smallest_tiles(matrix[order], layout, sparsity)
        kept = np.empty(matrix.shape, dtype=bool)
        kept[order] = obs.spread(tiles, layout, matrix.shape)
    layer.replace(np.where(kept, matrix, 0))


def _choice(layout: Layout, sparsity: float) -> Choice:
    return Choice(layout, layout.sparsity if isinstance(layout, Pattern) else sparsity)


def _place(layer: Layer, layout: Layout) -> Place:
    """Describe a layer's columns of tiles; each saves multiplications."""
    assert isinstance(layout, Tile), "a pattern leaves nothing to allocate"
    blocks = layout.grid((layer.outputs, layer.inputs))[1]
    saves = layer.positions * layer.weight.values.size / blocks
    step = max(1, blocks // _STEPS)
    shape = (layer.outputs, *layer.weight.shape[2:], layer.inputs // layer.taps)
    return Place(layer.name, blocks, int(_MOST * blocks), step, saves, shape)


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


def _parsed(text: str) -> Layout:
    try:
        return parse_layout(text)
    except ValueError as error:
        wanted = 'outputs x inputs, such as "4x1", or kept:of, such as "2:4"'
        raise _wrong("tile", text, wanted) from error


def _wrong(option: str, value: object, wanted: str) -> UnusableInput:
    return UnusableInput(f"prune-tiles: {option} is {value}, but must be {wanted}.")
