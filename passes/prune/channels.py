"""Remove channels, hidden features and heads for good, and refit what reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, indices, product
from tilewright.errors import UnknownName, UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Tile
from tilewright.passes.prune import obs
from tilewright.passes.prune.allocate import Curve, cheapest
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.candidates import cannot_change
from tilewright.passes.prune.probe import HELD_OUT, Probe, check_allocation
from tilewright.passes.prune.refit import Seen, refit_layer, seen_by
from tilewright.plan import Plan
from tilewright.protocol import Context, Note, Outcome
from tilewright.segments import Pair
from tilewright.threads import one_blas_thread

_LEAST = 0.2  # of a dimension's entries, which stay in any case


class _Choice(NamedTuple):
    """A dimension, the one layer that adds up over it, and how many entries stay."""

    dimension: Dimension
    layer: Layer
    kept: int


@dataclass(frozen=True)
class PruneChannels:
    """Remove entries of the dimensions that one layer adds up over.

    Such are the channels between two layers, the hidden features of a perceptron and the heads
    of attention, wherever they run through normalizations, depthwise convolutions, reshapes and
    gates. Their weights are taken out, so the model is smaller and faster everywhere.

    With allocate="uniform" each dimension loses the share `sparsity` of its entries; with
    "global" each loses what together moves the network's answers least (probe.py), until
    `sparsity` of the multiplications that all their entries stand for is saved.

    With calibration data the entries that hurt least are found by "obs": greedy elimination
    of column blocks of the layer that reads them (obs.py), which is then refitted to the dense
    network's outputs, on what the already pruned network gives it. Without data, or with
    criterion="magnitude", those with the smallest squared sums of weights go, and nothing is
    refitted.

    What is kept is a multiple of `multiple`, where there is much more than that. What the last
    layer reads stays (`ends`), as do dimensions whose entries hold fewer than `smallest`
    weights in all, those read by layers named in `skip`, and those that a normalization
    averages over or callers see. A plan in the context says instead, for each layer by name,
    which share "channels" of what it reads goes.
    """

    sparsity: float = 0.3
    criterion: str = "obs"
    allocate: str = "uniform"
    multiple: int = 8
    damp: float = 0.01
    ends: bool = False
    smallest: int = 4096
    skip: tuple[str, ...] = ()

    name: ClassVar[str] = "prune-channels"
    source: ClassVar[str] = (
        'Frantar & Alistarh, "Optimal Brain Compression" (2022), with column blocks; groups as '
        'in Fang et al., "DepGraph" (2023)'
    )
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
        if self.multiple < 1:
            raise _wrong("multiple", self.multiple, "a whole number from 1 on")
        if not 0 < self.damp < np.inf:
            raise _wrong("damp", self.damp, "a positive number")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Remove what every choice leaves out.

        Raises UnusableInput where allocate="global" has nothing to measure answers on.
        """
        check_allocation(self, context)
        dense = graph.edit().sorted()
        pruned = dense.edit()
        couplings = Couplings(pruned)
        notes = list(couplings.notes)
        choices = self._choices(pruned, couplings, context.plan, notes)
        if context.calibration is None and self.criterion == "obs" and choices:
            notes += self._warned(context, choices)
        calibration = context.calibration
        if calibration is None or self.criterion == "magnitude":
            kept = {c.dimension: _entries(_smallest(c, couplings)) for c in choices}
        else:
            with one_blas_thread():
                if self.allocate == "global" and context.plan is None:
                    choices = self._allocated(dense, couplings, choices, context, calibration)
                kept = self._refit(dense, pruned, couplings, choices, context, calibration)
        notes += [_removed(choice) for choice in choices]
        return Outcome(couplings.select(kept) if kept else pruned, tuple(notes))

    def _warned(self, context: Context, choices: Sequence[_Choice]) -> list[Note]:
        reason = (
            "its inputs are chosen by magnitude, not refitted: there is no calibration data"
        )
        context.report(
            "prune-channels: no calibration data, so channels are chosen by magnitude and "
            "nothing is refitted; expect the answers to change a lot. Give --calibration "
            "FILE.npz."
        )
        return [Note(choice.layer.name, reason) for choice in choices]

    def _choices(
        self, graph: Graph, couplings: Couplings, plan: Plan | None, notes: list[Note]
    ) -> list[_Choice]:
        """Return what loses entries, in the order of the layers that read it."""
        layers = {layer.name: layer for layer in linear_layers(graph)}
        shares = None if plan is None else _planned(plan, layers)
        for name in self.skip:
            if name not in layers:
                raise UnknownName("layer", name, list(layers))
        order = {node.name: index for index, node in enumerate(graph.nodes)}
        choices: dict[str, _Choice] = {}
        for dimension in couplings.places:
            readers = couplings.sums(dimension)
            if len(readers) != 1 or readers[0] not in layers:
                notes += _shared(dimension, readers)
                continue
            layer = layers[readers[0]]
            share = self.sparsity if shares is None else shares.get(layer.name, 0.0)
            left = self._left(dimension.size, share)
            reason = self._reason(graph, couplings, dimension, layer, layer.name in choices)
            if reason:
                notes.append(Note(layer.name, f"none of its {dimension.size} inputs: {reason}"))
            elif left < dimension.size:
                choices[layer.name] = _Choice(dimension, layer, left)
        _check_all_found(shares or {}, choices, notes)
        return sorted(choices.values(), key=lambda choice: order[choice.layer.name])

    def _left(self, size: int, share: float) -> int:
        left = max(1, round((1 - share) * size))
        if size < 4 * self.multiple or left == size:
            return left
        return max(self.multiple, round(left / self.multiple) * self.multiple)

    def _reason(
        self,
        graph: Graph,
        couplings: Couplings,
        dimension: Dimension,
        layer: Layer,
        taken: bool,
    ) -> str | None:
        """Say why a dimension stays whole, or None."""
        constants = graph.constants()
        *_, last = (layer.name for layer in linear_layers(graph))
        places = couplings.places[dimension]
        weights = sum(constants[name].size for name, _ in places if name in constants)
        if layer.name in self.skip:
            return "named by skip"
        if dimension.counted:
            return dimension.counted
        if layer.name == last and not self.ends:
            return "the last layer of the network; ends=true prunes it too"
        if taken:
            return "others of its inputs go"
        if weights < self.smallest:
            return f"they hold {weights} weights, fewer than smallest={self.smallest}"
        return cannot_change(graph, layer)

    def _allocated(
        self,
        dense: Graph,
        couplings: Couplings,
        choices: Sequence[_Choice],
        context: Context,
        calibration: Calibration,
    ) -> list[_Choice]:
        """Return the choices with as many entries kept as cost least together."""
        macs = _macs(dense)
        fitted, held = calibration.held_out(HELD_OUT)
        pair = Pair(fitted, dense, seed=context.seed)
        probe = Probe(dense, held)
        curves = []
        for done, choice in enumerate(choices, 1):
            context.report(
                f"prune-channels: probing {choice.layer.name} ({done} of {len(choices)})"
            )
            size = choice.dimension.size
            step = self.multiple if size >= 4 * self.multiple else 1
            most = size - max(step, round(_LEAST * size))
            seen = seen_by(choice.layer, pair, dense)

            def without(
                graph: Graph, gone: int, choice: _Choice = choice, seen: Seen = seen
            ) -> None:
                layers = {layer.name: layer for layer in linear_layers(graph)}
                mine = choice._replace(
                    layer=layers[choice.layer.name], kept=choice.dimension.size - gone
                )
                self._solve(mine, couplings, seen, use_counts(graph))

            where = couplings.places[choice.dimension]
            saves = sum(macs.get(name, 0.0) for name, _ in where) / size
            curves.append(Curve(probe.costs(without, most), saves, step))
        whole = sum(
            c.saves * choice.dimension.size for c, choice in zip(curves, choices, strict=True)
        )
        removed = cheapest(curves, self.sparsity * whole)
        return [
            choice._replace(kept=choice.dimension.size - gone)
            for choice, gone in zip(choices, removed, strict=True)
            if gone
        ]

    def _refit(
        self,
        dense: Graph,
        pruned: Graph,
        couplings: Couplings,
        choices: Sequence[_Choice],
        context: Context,
        calibration: Calibration,
    ) -> dict[Dimension, list[int]]:
        """Choose layer by layer, and refit each to what it gave in the dense network.

        What goes is zero in `pruned` until all is chosen: both networks have one shape.
        """
        pair = Pair(calibration, dense, seed=context.seed)
        uses = use_counts(pruned)
        kept = {}
        for done, choice in enumerate(choices, 1):
            layer = choice.layer
            context.report(f"prune-channels: {layer.name} ({done} of {len(choices)})")
            seen = seen_by(layer, pair, pruned)
            kept[choice.dimension] = self._solve(choice, couplings, seen, uses)
        return kept

    def _solve(
        self, choice: _Choice, couplings: Couplings, seen: Seen, uses: Mapping[str, int]
    ) -> list[int]:
        """Choose which entries stay, and refit the layer that reads them."""
        order, tile = _blocks(choice, couplings)
        gone = 1 - choice.kept / choice.dimension.size
        kept: list[int] = []

        def solve(target: np.ndarray, hessian: np.ndarray) -> np.ndarray:
            inverse = np.linalg.inv(hessian)[np.ix_(order, order)]
            mask = obs.tile_masks(target[:, order], inverse, tile, gone)
            kept.extend(_entries(mask))
            refitted = np.empty_like(target)
            refitted[:, order] = obs.refit(
                target[:, order], hessian[np.ix_(order, order)], tile, mask
            )
            return refitted

        refit_layer(choice.layer, seen, self.damp, uses, solve)
        return kept


def _macs(graph: Graph) -> dict[str, float]:
    """Return the multiplications that each weight tensor takes part in."""
    return {
        layer.weight.name: float(layer.positions * layer.weight.values.size)
        for layer in linear_layers(graph)
    }


def _blocks(choice: _Choice, couplings: Couplings) -> tuple[np.ndarray, Tile]:
    """Return the layer's columns, sorted by entry of the dimension, and an entry's tile."""
    layer = choice.layer
    weight = couplings.of(layer.weight)
    columns = product([e for axis, e in enumerate(weight) if axis != layer.output_axis])
    size = choice.dimension.size
    sorted_ = [indices(columns, {choice.dimension: np.array([i])}) for i in range(size)]
    return np.concatenate(sorted_), Tile(layer.outputs, len(sorted_[0]))


def _smallest(choice: _Choice, couplings: Couplings) -> np.ndarray:
    order, tile = _blocks(choice, couplings)
    gone = 1 - choice.kept / choice.dimension.size
    return obs.smallest_tiles(choice.layer.matrix()[:, order], tile, gone)


def _entries(mask: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask[0])]


def _shared(dimension: Dimension, readers: Sequence[str]) -> list[Note]:
    notes = []
    for name in readers:
        others = ", ".join(reader for reader in readers if reader != name)
        reason = f"{others} read them too" if others else "no weights meet them there"
        notes.append(Note(name, f"none of its {dimension.size} inputs: {reason}"))
    return notes


def _removed(choice: _Choice) -> Note:
    size = choice.dimension.size
    return Note(choice.layer.name, f"reads {choice.kept} of {size}: the others are removed")


def _planned(plan: Plan, layers: Mapping[str, Layer]) -> dict[str, float]:
    """Return the share that each layer's inputs lose."""
    shares: dict[str, float] = {}
    for item, level in sorted(plan.levels.items()):
        if "channels" not in level:
            continue
        share = level["channels"]
        if item not in layers:
            raise UnusableInput(
                f'The plan cannot be applied: "{item}" is not a linear layer of this model. '
                f"Correct it; the model's layers are {', '.join(layers) or 'none'}."
            )
        if isinstance(share, str) or not 0 <= share < 1:
            raise UnusableInput(
                f'The plan cannot be applied: channels of "{item}" is {share!r}, not a number '
                "from 0 to below 1."
            )
        shares[item] = float(share)
    return shares


def _check_all_found(
    shares: Mapping[str, float], choices: Mapping[str, _Choice], notes: Sequence[Note]
) -> None:
    """Raise UnusableInput where a plan asks for what stays whole."""
    missing = [name for name, share in shares.items() if share and name not in choices]
    if missing:
        said = "; ".join(n.reason for n in notes if n.node == missing[0])
        raise UnusableInput(
            f'The plan cannot be applied: no inputs of "{missing[0]}" can be removed: '
            f"{said or 'callers see them, or the share is less than one of them'}."
        )


def _wrong(option: str, value: object, wanted: str) -> UnusableInput:
    return UnusableInput(f"prune-channels: {option} is {value}, but must be {wanted}.")
