"""Which dimensions may lose entries, how many a share or a plan takes, and why others stay."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension
from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune.candidates import cannot_change
from tilewright.plan import Plan, shares_of
from tilewright.protocol import Note
from tilewright.removed import columns_of, dimensions_read


class Cut(NamedTuple):
    """A dimension, how many of its entries stay, and the layers that add up over it, in order.

    `columns` are those of each layer's matrix that meet an entry, (entries, columns).
    """

    dimension: Dimension
    kept: int
    layers: tuple[Layer, ...]
    columns: tuple[np.ndarray, ...]

    @property
    def gone(self) -> int:
        """How many entries go."""
        return self.dimension.size - self.kept

    @property
    def names(self) -> str:
        """The layers by name, for messages."""
        return ", ".join(layer.name for layer in self.layers)


class Removable(NamedTuple):
    """The dimensions that may lose entries, whole, and why each of the others may not."""

    cuts: tuple[Cut, ...]
    reasons: Mapping[Dimension, str]

    def without_overlaps(self) -> "Removable":
        """Leave out what reads the same columns as a dimension before it: depths of heads."""
        kept: list[Cut] = []
        reasons = dict(self.reasons)
        for cut in self.cuts:
            if any(overlap(cut, other) for other in kept):
                reasons[cut.dimension] = _TAKEN
            else:
                kept.append(cut)
        return Removable(tuple(kept), reasons)


_TAKEN = "others of its inputs go"


def removable(
    graph: Graph, couplings: Couplings, *, ends: bool, smallest: int, skip: Sequence[str]
) -> Removable:
    """Sort the dimensions by whether entries may go, in the order of the layers that read them.

    Those may that linear layers alone add up over, none of them the last one (`ends` admits
    it) or named in `skip`, and whose entries hold at least `smallest` weights in all.
    Raises UnknownName where `skip` names no layer.
    """
    layers = {layer.name: layer for layer in linear_layers(graph)}
    for name in skip:
        if name not in layers:
            raise UnknownName("layer", name, list(layers))
    last = None if ends or not layers else list(layers)[-1]
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    constants = graph.constants()
    reasons: dict[Dimension, str] = {}
    cuts = []
    for dimension, places in couplings.places.items():
        readers = sorted(couplings.sums(dimension), key=order.__getitem__)
        weights = sum(constants[name].size for name, _ in places if name in constants)
        reason = (
            _unreadable(graph, layers, readers)
            or _excluded(readers, last, skip)
            or dimension.counted
        )
        if not reason and weights < smallest:
            reason = f"they hold {weights} weights, fewer than smallest={smallest}"
        if reason:
            reasons[dimension] = reason
            continue
        found = tuple(layers[name] for name in readers)
        columns = tuple(columns_of(couplings, layer, dimension) for layer in found)
        cuts.append(Cut(dimension, dimension.size, found, columns))
    cuts.sort(key=lambda cut: order[cut.layers[0].name])
    return Removable(tuple(cuts), reasons)


def overlap(one: Cut, other: Cut) -> bool:
    """Say whether some layer has columns that meet entries of both."""
    return any(
        a.name == b.name and np.intersect1d(columns, others).size
        for a, columns in zip(one.layers, one.columns, strict=True)
        for b, others in zip(other.layers, other.columns, strict=True)
    )


def stays(couplings: Couplings, reasons: Mapping[Dimension, str]) -> list[Note]:
    """Note at each node that adds up over a dimension why that stays whole."""
    return [
        Note(name, f"none of its {dimension.size} inputs: {reason}")
        for dimension, reason in reasons.items()
        for name in couplings.sums(dimension)
    ]


def planned_cuts(plan: Plan, graph: Graph, couplings: Couplings, found: Removable) -> list[Cut]:
    """Return what a plan takes, to the entry.

    A share of a layer is taken of each dimension of its inputs, or of the first of those that
    meet the same columns; "0.25|0" says it for each dimension by itself. Of a dimension that
    several layers read one is enough, and all that are named must agree. Raises one
    UnusableInput that lists everything wrong.
    """
    layers = {layer.name: layer for layer in linear_layers(graph)}
    cuts = {cut.dimension: cut for cut in found.cuts}
    asked: dict[Dimension, dict[str, float]] = {}
    wrong: list[str] = []
    for item, level in sorted(plan.levels.items()):
        if "channels" not in level:
            continue
        if item not in layers:
            wrong.append(f'"{item}" is not a linear layer of this model')
            continue
        read = dimensions_read(couplings, layers[item])
        try:
            shares = _by_dimension(level["channels"], read, cuts)
        except ValueError as error:
            wrong.append(f'channels of "{item}" is {level["channels"]!r}, {error}')
            continue
        for dimension, share in shares.items():
            asked.setdefault(dimension, {})[item] = share
        refused = [d for d in shares if shares[d] and d not in cuts]
        if refused or not shares:
            why = [found.reasons[d] for d in refused or read if d in found.reasons]
            said = "; ".join(dict.fromkeys(why)) or "callers see them, or no rule follows them"
            wrong.append(f'no inputs of "{item}" can be removed: {said}')
    wrong += _disagreeing(asked)
    taken: dict[Dimension, Cut] = {}
    for dimension, by in asked.items():
        item, share = max(by.items(), key=lambda entry: entry[1])
        if dimension not in cuts or not share:
            continue
        kept = max(1, round((1 - share) * dimension.size))
        cut = cuts[dimension]._replace(kept=kept)
        if not cut.gone:
            said = f"which is less than one of its {dimension.size} inputs"
            wrong.append(f'channels of "{item}" is {share}, {said}')
        if any(overlap(cut, other) for other in taken.values()):
            wrong.append(f'channels of "{item}": {_TAKEN}')
        taken[dimension] = cut
    if wrong:
        raise UnusableInput(
            f"The plan cannot be applied: {'; '.join(wrong)}. "
            f"Correct it; the model's layers are {', '.join(layers) or 'none'}."
        )
    return [taken[whole.dimension] for whole in found.cuts if whole.dimension in taken]


def _by_dimension(
    value: float | int | str, read: Sequence[Dimension], cuts: Mapping[Dimension, Cut]
) -> dict[Dimension, float]:
    """Return the share of each dimension that a level's "channels" speaks of."""
    shares = shares_of(value)
    if not isinstance(value, str):
        (share,) = shares
        taken: dict[Dimension, float] = {}
        for dimension in read:
            whole = cuts.get(dimension)
            if whole and not any(overlap(whole, cuts[other]) for other in taken):
                taken[dimension] = share
        return taken
    if len(shares) != len(read):
        sizes = ", ".join(str(dimension.size) for dimension in read)
        raise ValueError(f"not one share for each of its dimensions ({sizes or 'none'})")
    return dict(zip(read, shares, strict=True))


def _disagreeing(asked: Mapping[Dimension, Mapping[str, float]]) -> Iterable[str]:
    for dimension, by in asked.items():
        if len(set(by.values())) > 1:
            said = ", ".join(f'{share} by "{item}"' for item, share in by.items())
            yield f"the same {dimension.size} channels are to lose {said}"


def _unreadable(
    graph: Graph, layers: Mapping[str, Layer], readers: Sequence[str]
) -> str | None:
    """Say which of those that add up over a dimension cannot be given other weights."""
    others = [name for name in readers if name not in layers]
    if others or not readers:
        return f"{', '.join(others) or 'nothing'} adds up over them, without weights"
    reasons = [cannot_change(graph, layers[name]) for name in readers]
    return next((reason for reason in reasons if reason), None)


def _excluded(readers: Sequence[str], last: str | None, skip: Sequence[str]) -> str | None:
    for name in readers:
        if name in skip:
            return f"{name} is named by skip"
        if name == last:
            return f"{name} is the last layer of the network; ends=true prunes it too"
    return None
