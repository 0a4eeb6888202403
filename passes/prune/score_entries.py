"""What weights and gradients say of the entries of dimensions: channels, features, heads.

Each function returns scores by dimension, (entries,) each, higher is more important. All look
at the dense network. Where several layers write a dimension, each counts by its share of what
it has in all; the papers know one. That filters include depthwise ones is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.calibration import Calibration
from tilewright.coupling import Couplings
from tilewright.dimensions import Dimension, leaves
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune import criteria
from tilewright.passes.prune.bias import bias_of, use_counts
from tilewright.passes.prune.joint import squared_sums
from tilewright.passes.prune.pseudo_labels import gradients
from tilewright.passes.prune.removable import Cut
from tilewright.removed import entries_of

Scores = dict[Dimension, np.ndarray]
Constants = Mapping[str, np.ndarray]


class Entries(NamedTuple):
    """Dimensions whose entries are compared, and what is known; layers are the dense ones."""

    dense: Graph
    couplings: Couplings
    cuts: Sequence[Cut]
    calibration: Calibration | None
    seed: int


def magnitude(asked: Entries) -> Scores:
    """Return the squared sums of the weights that read each entry."""
    return {
        cut.dimension: squared_sums(
            [
                (layer.matrix(), columns)
                for layer, columns in zip(cut.layers, cut.columns, strict=True)
            ]
        )
        for cut in asked.cuts
    }


def l2(asked: Entries) -> Scores:
    """Return the norms of the filters that write each entry (`criteria.filter_norms`).

    Raises UnusableInput where a dimension has none.
    """
    found = {}
    for cut in asked.cuts:
        squares = np.zeros(cut.dimension.size)
        for layer, rows in _writers(asked, cut, "l2"):
            norms = criteria.filter_norms(layer.matrix()[rows])
            squares += np.square(norms) / max(float(np.square(norms).sum()), 1e-30)
        found[cut.dimension] = np.sqrt(squares)
    return found


def taylor(asked: Entries) -> Scores:
    """Return what the loss changes by without the weights that read each entry.

    That is a gate on the entry (`criteria.taylor`), whatever writes it; the mean over losses.
    """
    assert asked.calibration is not None
    names = {str(its.weight.name) for cut in asked.cuts for its in cut.layers}
    constants = asked.dense.constants()
    found = {cut.dimension: np.zeros(cut.dimension.size) for cut in asked.cuts}
    count = 0
    for batch in gradients(asked.dense, asked.calibration, names, asked.seed):
        count += 1
        for cut in asked.cuts:
            weights, slopes = _read(cut, constants), _read(cut, batch)
            found[cut.dimension] += criteria.taylor(weights, slopes[None])
    return {dimension: total / count for dimension, total in found.items()}


def reconstruction(asked: Entries) -> Scores:
    """Return the R-scores of the filters that write each entry, biases included.

    Raises UnusableInput where a dimension has none.
    """
    assert asked.calibration is not None
    uses = use_counts(asked.dense)
    constants = asked.dense.constants()
    filters = {
        cut.dimension: [
            (layer, bias_of(layer, uses), rows)
            for layer, rows in _writers(asked, cut, "reconstruction")
        ]
        for cut in asked.cuts
    }
    parts = [part for each in filters.values() for part in each]
    tensors = [t for layer, bias, _ in parts for t in (layer.weight, bias)]
    names = {str(t.name) for t in tensors if t is not None}
    total = {name: np.zeros(constants[name].shape) for name in names}
    for batch in gradients(asked.dense, asked.calibration, names, asked.seed):
        for name, slope in batch.items():
            total[name] += slope

    def written(dimension: Dimension, values: Constants) -> np.ndarray:
        found = []
        for layer, bias, rows in filters[dimension]:
            found.append(layer.as_matrix(values[layer.weight.name])[rows])
            if bias is not None:
                found.append(values[bias.name].reshape(-1)[rows])
        return np.concatenate([each.reshape(dimension.size, -1) for each in found], axis=1)

    return {
        d: criteria.reconstruction(written(d, constants), written(d, total)[None])
        for d in filters
    }


def _writers(asked: Entries, cut: Cut, criterion: str) -> Iterator[tuple[Layer, np.ndarray]]:
    """Yield the layers whose outputs are a dimension's entries, and their rows, by entry."""
    found = 0
    for layer in linear_layers(asked.dense):
        written = asked.couplings.of(layer.weight)[layer.output_axis]
        if cut.dimension in leaves(written):
            found += 1
            yield layer, entries_of(written, cut.dimension)
    if not found:
        raise UnusableInput(
            f"prune-channels: criterion={criterion} looks at the layers that write what "
            f"{cut.names} reads, and no linear layer does. Name it in skip=, or choose "
            "another criterion, such as obs."
        )


def _read(cut: Cut, values: Constants) -> np.ndarray:
    """Return the weights, or their gradients, that read each entry: (entries, weights)."""
    return np.concatenate(
        [
            np.moveaxis(layer.as_matrix(values[layer.weight.name])[:, columns], 1, 0).reshape(
                len(columns), -1
            )
            for layer, columns in zip(cut.layers, cut.columns, strict=True)
        ],
        axis=1,
    )
