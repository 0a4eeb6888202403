"""Prune in the tiles that the target's kernels execute, and refit what is left."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Layout, Pattern, Tile, parse_layout
from tilewright.passes.prune import obs
from tilewright.passes.prune.allocate import Curve, cheapest
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.candidates import candidates, cannot_change
from tilewright.passes.prune.probe import HELD_OUT, Probe, check_allocation
from tilewright.passes.prune.refit import Seen, refit_layer, seen_by
from tilewright.plan import Plan
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread

Choice = tuple[Layout, float]

_MOST = 0.9  # of a layer's tiles that may go
_STEPS = 32  # in which tiles go, of all
_ROUNDED = 1e-5  # how far plans round shares


@dataclass(frozen=True)
class PruneTiles:
    """Set whole tiles of weights to zero: `sparsity` of the tiles of every layer.

    With allocate="global" each layer loses what together moves the network's answers least
    (probe.py), until `sparsity` of the multiplications in these layers is saved.

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
    allocate: str = "uniform"
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
        if self.allocate not in ("uniform", "global"):
            raise _wrong("allocate", self.allocate, '"uniform" or "global"')
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
        check_allocation(self, context)
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
        if context.calibration is None or self.criterion == "magnitude":
            if self.criterion == "obs" and layers:
                notes += self._warned(context, layers)
            for layer in layers:
                _drop_smallest(layer, *choices[layer.name])
            return Outcome(pruned, tuple(notes))
        for layer in layers:
            if layer.groups > 1:
                _drop_smallest(layer, *choices[layer.name])
        solved = [layer for layer in layers if layer.groups == 1]
        with one_blas_thread():
            if self.allocate == "global" and context.plan is None:
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
        """Return the choices with the sparsities that cost least together."""
        fitted, held = calibration.held_out(HELD_OUT)
        pair = Pair(fitted, dense, seed=context.seed)
        probe = Probe(dense, held)
        curves: dict[str, Curve] = {}
        blocks_of = {layer.name: _blocks(layer, choices[layer.name][0]) for layer in layers}
        for members in _siblings(layers):
            seen = seen_by(members[0], pair, dense)
            for layer in members:
                context.report(
                    f"prune-tiles: probing {layer.name} ({len(curves) + 1} of {len(layers)})"
                )
                tile, _ = choices[layer.name]
                blocks = blocks_of[layer.name]

                def without(
                    graph: Graph,
                    gone: int,
                    name: str = layer.name,
                    tile: Layout = tile,
                    blocks: int = blocks,
                    seen: Seen = seen,
                ) -> None:
                    (mine,) = (found for found in linear_layers(graph) if found.name == name)
                    self._solve(mine, (tile, gone / blocks), seen, use_counts(graph))

                saves = layer.positions * layer.weight.values.size / blocks
                step = max(1, blocks // _STEPS)
                costs = probe.costs(without, int(_MOST * blocks))
                curves[layer.name] = Curve(costs, saves, step)
        whole = sum(layer.positions * layer.weight.values.size for layer in layers)
        removed = cheapest(list(curves.values()), self.sparsity * whole)
        return {
            name: (choices[name][0], gone / blocks_of[name])
            for name, gone in zip(curves, removed, strict=True)
        }

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
        layout, sparsity = choice
        choose = obs.tile_masks_by_loss if self.rows == "global" else obs.tile_masks

        def solve(target: np.ndarray, hessian: np.ndarray) -> np.ndarray:
            if isinstance(layout, Pattern):
                return obs.prune_pattern(target, hessian, layout, layer.taps)
            return obs.prune(target, hessian, layout, sparsity, choose)

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
            choices[item] = layout, float(sparsity)
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
        for name, (tile, _) in choices.items()
        if tiles and tile not in tiles
    ]


def _drop_smallest(layer: Layer, layout: Layout, sparsity: float) -> None:
    matrix = layer.matrix()
    if isinstance(layout, Pattern):
        kept = obs.smallest_of_pattern(matrix, layout, layer.taps)
    else:
        tiles = obs.smallest_tiles(matrix, layout, sparsity)
        kept = obs.spread(tiles, layout, matrix.shape)
    layer.replace(np.where(kept, matrix, 0))


def _choice(layout: Layout, sparsity: float) -> Choice:
    return layout, layout.sparsity if isinstance(layout, Pattern) else sparsity


def _blocks(layer: Layer, layout: Layout) -> int:
    assert isinstance(layout, Tile), "a pattern leaves nothing to allocate"
    return layout.grid((layer.outputs, layer.inputs))[1]


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
