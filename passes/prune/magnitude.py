"""Prune the smallest weights, one by one or N of every M."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.options import check_below_one
from tilewright.passes.prune.candidates import candidates
from tilewright.protocol import Context, Outcome


@dataclass(frozen=True)
class PruneWeights:
    """Set the smallest weights of every layer to zero.

    `pattern` is "unstructured": `sparsity` of each layer's weights go, wherever they are. Or it
    is "N:M", such as "2:4": of every M neighbouring inputs of an output the N largest stay, and
    `sparsity` must say the same, 1 - N/M. Weights shared by several nodes are left alone.
    """

    sparsity: float = 0.5
    pattern: str = "unstructured"

    name: ClassVar[str] = "prune-weights"
    source: ClassVar[str] = 'Han et al., "Learning both Weights and Connections" (2015)'
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_below_one(self, "sparsity")
        if self.pattern == "unstructured":
            return
        kept, group = _n_of_m(self.pattern)
        if abs(self.sparsity - (1 - kept / group)) > 1e-6:
            raise UnusableInput(
                f"prune-weights: pattern {self.pattern} makes the sparsity "
                f"{1 - kept / group:g}, but sparsity={self.sparsity:g} was asked. "
                "Give both alike."
            )

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Prune every layer whose weights are its own."""
        edited = graph.edit()
        found = candidates(edited)
        for layer in found.layers:
            matrix = layer.matrix()
            if self.pattern == "unstructured":
                layer.replace(smallest_to_zero(matrix, self.sparsity))
            else:
                layer.replace(largest_of_groups(matrix, *_n_of_m(self.pattern)))
        return Outcome(edited, tuple(found.notes))


def smallest_to_zero(matrix: np.ndarray, sparsity: float) -> np.ndarray:
    """Return a copy with round(sparsity * size) weights of least magnitude at zero."""
    # Ties go to the lower index (stable sort), so the count is exact and runs agree.
    order = np.argsort(np.abs(matrix), axis=None, kind="stable")
    pruned = matrix.flatten()
    pruned[order[: round(sparsity * matrix.size)]] = 0
    return pruned.reshape(matrix.shape)


def largest_of_groups(matrix: np.ndarray, kept: int, group: int) -> np.ndarray:
    """Return a copy in which of every `group` neighbours in a row the `kept` largest stay.

    A last group that is not full loses what a full one would lose, as far as it goes.
    """
    rows, columns = matrix.shape
    padded = np.full((rows, -(-columns // group) * group), np.inf)
    padded[:, :columns] = np.abs(matrix)
    split = padded.reshape(rows, -1, group)
    order = np.argsort(split, axis=2, kind="stable")[:, :, : group - kept]
    mask = np.ones(split.shape, dtype=bool)
    np.put_along_axis(mask, order, False, axis=2)
    return np.where(mask.reshape(rows, -1)[:, :columns], matrix, 0)


def _n_of_m(pattern: str) -> tuple[int, int]:
    try:
        kept, group = (int(part) for part in pattern.split(":"))
    except ValueError:
        kept, group = 0, 0
    if not 0 < kept < group:
        raise UnusableInput(
            f'prune-weights: pattern is "{pattern}", but must be "unstructured" or N:M, '
            'such as "2:4".'
        )
    return kept, group
