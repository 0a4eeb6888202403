"""Classes and gradients where there are no labels: calibration data has none.

Where an output has the form of class scores, a sample's label is the dense network's own
answer, and the loss the cross-entropy to it. Elsewhere the loss is v . y, y being the outputs,
each divided by its length, and v random signs: (w d(v . y)/dw)^2 is in the mean over v the
squared change of y without w, to first order (Hutchinson, 1989). Both are ours; the criteria
that read them were published with labels.
"""

import math
from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tilewright import oracle
from tilewright.autograd import Differentiable, require_torch
from tilewright.calibration import Calibration
from tilewright.class_scores import class_scores
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape, with_outputs
from tilewright.protocol import Feeds

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLES = 64  # whose gradients are taken
_DIRECTIONS = 4  # for each of them


def sample_scores(graph: Graph) -> str | None:
    """Return the name of a tensor of class scores, one row a sample; None without one."""
    shapes = {str(t.name): static_shape(t) for t in class_scores(graph)}
    rows = (n for n, shape in shapes.items() if shape and math.prod(shape) == max(shape))
    return next(rows, None)


def classes_of(dense: Graph, calibration: Calibration) -> np.ndarray:
    """Return which class the dense network says each sample is, (samples,).

    Raises UnusableInput where that is the same for all, which tells nothing apart.
    """
    scores = sample_scores(dense)
    assert scores is not None, "check_criterion admits only networks with scores"
    session = oracle.session(with_outputs(dense, [scores]))
    found = [int(oracle.outputs_of(session, f)[scores].argmax()) for f in calibration.feeds()]
    if len(set(found)) < 2:
        raise UnusableInput(
            f"Classes are to be compared, but the model says class {found[0]} for all "
            f"{len(found)} calibration samples. Give samples of several classes."
        )
    return np.array(found)


def gradients(
    dense: Graph, calibration: Calibration, weights: Collection[str], seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the gradients of losses of single samples to constants, by name.

    One loss a sample where there are class scores, else one for each of some directions, which
    `seed` chooses. Raises UnusableInput without torch, and for operators that it lacks.
    """
    torch = require_torch("A criterion")
    model = Differentiable(dense, weights)
    scores, rng = sample_scores(dense), np.random.default_rng(seed)
    for feeds in islice(calibration.feeds(), _SAMPLES):
        for loss in _losses(model, feeds, scores, dense, rng):
            found = torch.autograd.grad(
                loss, list(model.weights.values()), retain_graph=True, materialize_grads=True
            )
            yield {n: g.numpy() for n, g in zip(model.weights, found, strict=True)}


def _losses(
    model: Differentiable,
    feeds: Feeds,
    scores: str | None,
    dense: Graph,
    rng: np.random.Generator,
) -> "list[Tensor]":
    torch = require_torch("A criterion")
    stacked = {name: torch.from_numpy(np.stack([x])) for name, x in feeds.items()}
    if scores is not None:
        logits = model(stacked, [scores])[scores].flatten(1)
        return [torch.nn.functional.cross_entropy(logits, logits.argmax(1))]
    names = [t.name for t in dense.outputs if np.dtype(t.dtype).kind == "f"]
    answers = [y.flatten() for y in model(stacked, names).values()]
    scaled = torch.cat([y / y.detach().norm().clamp_min(1e-20) for y in answers])
    signs = rng.choice([-1.0, 1.0], (_DIRECTIONS, len(scaled))).astype(np.float32)
    return [(scaled * torch.from_numpy(each)).sum() for each in signs]
