"""What training makes small: how far states, and scores of classes, are from the dense ones.

Each measure takes features and what they should be, and the axis that they lie along; what it
returns has the others, samples first.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.class_scores import class_scores
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape, with_outputs

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-20
_SHORT = 1e-6  # a length, below which a direction says nothing

Measure = Callable[["Tensor", "Tensor", int], "Tensor"]


def angles(found: "Tensor", aim: "Tensor", axis: int) -> "Tensor":
    """Return 1 - cos(found, aim)."""
    lengths = found.norm(dim=axis).clamp_min(_SHORT) * aim.norm(dim=axis).clamp_min(_SHORT)
    away: Tensor = 1 - (found * aim).sum(axis) / lengths
    return away


def squares(found: "Tensor", aim: "Tensor", axis: int) -> "Tensor":
    """Return |found - aim|^2, relative to the mean of |aim|^2 over the sample."""
    energy = aim.square().sum(axis)
    per_sample = energy.reshape(len(energy), -1).mean(1).reshape(-1, *[1] * (energy.ndim - 1))
    away: Tensor = (found - aim).square().sum(axis) / per_sample.clamp_min(_TINY)
    return away


def divergence(found: "Tensor", aim: "Tensor", axis: int) -> "Tensor":
    """Return the Kullback-Leibler divergence of what softmax makes of scores, in nats."""
    wanted, given = aim.log_softmax(axis), found.log_softmax(axis)
    away: Tensor = (wanted.exp() * (wanted - given)).sum(axis)
    return away


_DIVERGENCE = "divergence"
# How far internal states are from where they should be, by the name of the loss.
STATES: dict[str, Measure] = {"cosine": angles, "squares": squares, _DIVERGENCE: squares}


def aligned_scores(name: str, loss: str, graph: Graph, dense: Graph) -> list[str]:
    """Return the scores of classes whose divergence is made small, too.

    `name` is that of the pass. Raises UnusableInput where the loss is of scores and there are
    none.
    """
    if loss != _DIVERGENCE:
        return []
    both = _scores_of_rows(graph) & _scores_of_rows(dense)
    if not both:
        raise UnusableInput(
            f'{name}: loss="{_DIVERGENCE}" compares scores of classes, and no output of the '
            "model holds such along its last axis, written by a linear layer. Give "
            'loss="squares".'
        )
    return sorted(both)


def judge_of(
    dense: Graph, held: Calibration, scores: Sequence[str]
) -> Callable[[Graph], float]:
    """Return what says how far answers on samples held out are from the dense network's."""
    if not scores:
        return Answers(dense, held).error
    answers = Answers(with_outputs(dense, scores), held)
    return lambda graph: answers.divergence(with_outputs(graph, scores))


def _scores_of_rows(graph: Graph) -> set[str]:
    """Return the names of tensors whose rows along the last axis are scores of classes."""
    shapes = {str(t.name): static_shape(t) for t in class_scores(graph)}
    return {name for name, shape in shapes.items() if shape and shape[-1] > 1}
