"""What the inputs of layers say of the entries of dimensions, on example inputs.

Each function returns scores by dimension, (entries,) each, higher is more important.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Gram
from tilewright.dimensions import Dimension, leaves
from tilewright.errors import UnusableInput
from tilewright.layers import Layer
from tilewright.passes.prune import criteria, discrimination
from tilewright.passes.prune.choose_entries import readers
from tilewright.passes.prune.pseudo_labels import classes_of
from tilewright.passes.prune.removable import Cut
from tilewright.passes.prune.score_entries import Entries, Scores
from tilewright.passes.prune.score_weights import ridge
from tilewright.removed import entries_of
from tilewright.segments import Pair, Walk

_FEATURES = 256  # of a unit's output, in which classes are compared
_CLASSES = 10  # the most frequent ones
_ROUNDS = 16  # in which channels are chosen


def leverages(asked: Entries) -> Scores:
    """Return the leverage of each entry among all that a layer reads (`criteria.leverage`).

    That of the columns that meet an entry is added up; the mean over the layers.
    """
    found: dict[str, np.ndarray] = {}
    for layer, read in _reading(asked):
        # The inputs of each group of a convolution stand for each other only.
        parts = [
            read.gram[start : start + layer.inputs, start : start + layer.inputs]
            for start in range(0, len(read.gram), layer.inputs)
        ]
        each = [criteria.leverage(gram, ridge(gram)) for gram in parts]
        found[layer.name] = np.mean(each, axis=0)

    def of(cut: Cut) -> np.ndarray:
        read = zip(cut.layers, cut.columns, strict=True)
        sums = [found[layer.name][columns].sum(axis=1) for layer, columns in read]
        return np.asarray(np.mean(sums, axis=0))

    return {cut.dimension: of(cut) for cut in asked.cuts}


def utilizations(asked: Entries) -> Scores:
    """Return the U-score of each entry in what the first layer reads (`criteria.utilization`).

    Classes are the ten most frequent of the dense network's answers; of more than 256 features
    that an entry has, such as pixels, so many are looked at, which the seed chooses.
    """
    assert asked.calibration is not None
    classes = classes_of(asked.dense, asked.calibration)
    labels, counts = np.unique(classes, return_counts=True)
    frequent = labels[np.argsort(-counts, kind="stable")[:_CLASSES]]
    chosen = np.flatnonzero(np.isin(classes, frequent))
    walk = Walk(asked.calibration)
    index = {node.name: place for place, node in enumerate(asked.dense.nodes)}
    found = {}
    for cut in sorted(asked.cuts, key=lambda each: index[each.layers[0].name]):
        layer = cut.layers[0]
        walk.advance(asked.dense, index[layer.name])
        held = _held(asked, cut.dimension, walk.values(layer.source.name), layer)
        activations = np.stack([held[sample] for sample in chosen])
        found[cut.dimension] = criteria.utilization(activations, classes[chosen], asked.seed)
    return found


def discriminations(asked: Entries) -> Scores:
    """Return how early each entry is chosen, all of them in 16 rounds (`discrimination`).

    Of what a layer gives, the part that it makes of the dimension is looked at; the mean over
    the layers that read it.

    Raises UnusableInput for grouped convolutions.
    """
    assert asked.calibration is not None
    _, labels = np.unique(classes_of(asked.dense, asked.calibration), return_inverse=True)
    wanted: dict[str, list[Cut]] = {}
    for cut in asked.cuts:
        for layer in cut.layers:
            wanted.setdefault(layer.name, []).append(cut)
    found = {cut.dimension: np.zeros(cut.dimension.size) for cut in asked.cuts}
    for layer, read in _reading(asked):
        if layer.groups > 1:
            raise UnusableInput(
                f"prune-channels: criterion=discrimination compares all inputs of a layer, but "
                f"{layer.name} is a convolution of {layer.groups} groups. Name it in skip=, or "
                "choose another criterion."
            )
        for cut in wanted[layer.name]:
            (place,) = [i for i, its in enumerate(cut.layers) if its.name == layer.name]
            order = _chosen(layer, cut.columns[place], read, labels)
            early = np.empty(len(order))
            early[order] = np.arange(len(order), 0, -1)
            found[cut.dimension] += early / len(cut.layers)
    return found


class _Read(NamedTuple):
    """X X^T of what a layer reads, (inputs, inputs), and each sample's mean of X's columns."""

    gram: np.ndarray
    pooled: np.ndarray


def _reading(asked: Entries) -> Iterator[tuple[Layer, _Read]]:
    """Yield each layer that reads a dimension, in order, and what it reads."""
    assert asked.calibration is not None
    pair = Pair(asked.calibration, asked.dense, seed=asked.seed)
    for layer in readers(asked.dense, asked.cuts):
        gram, means = Gram(), []
        for x, *_ in pair.columns(layer, asked.dense):
            gram.add(x)
            means.append(x.mean(axis=1, dtype=np.float64))
        yield layer, _Read(gram.product, np.array(means))


def _chosen(
    layer: Layer, columns: np.ndarray, read: _Read, labels: np.ndarray
) -> Sequence[int]:
    """Return the entries of columns, (entries, each), in the order in which they are chosen."""
    at = columns.reshape(-1)
    weights = layer.matrix()[:, at].astype(np.float64)
    gram = read.gram[np.ix_(at, at)]
    pooled = read.pooled[:, at]
    problem = discrimination.LabelledLayer(
        weights,
        gram + ridge(gram) * np.eye(len(at)),
        pooled,
        labels,
        discrimination.train_head(pooled @ weights.T, labels),
    )
    channels = np.repeat(np.arange(len(columns)), columns.shape[1])
    together = -(-len(columns) // _ROUNDS)
    return discrimination.select(problem, channels, len(columns), together).channels


def _held(
    asked: Entries, dimension: Dimension, values: Iterator[np.ndarray], layer: Layer
) -> list[np.ndarray]:
    """Return what each sample holds of a dimension: (entries, features)."""
    extents = asked.couplings.of(layer.source)
    axis = next(i for i, extent in enumerate(extents) if dimension in leaves(extent))
    at = entries_of(extents[axis], dimension)
    found = []
    picked: np.ndarray | None = None
    for x in values:
        ahead = np.moveaxis(x, axis, 0)[at].reshape(len(at), -1)
        if picked is None:
            size = ahead.shape[1]
            rng = np.random.default_rng(asked.seed)
            picked = np.sort(rng.choice(size, min(size, _FEATURES), replace=False))
        found.append(ahead[:, picked])
    return found
