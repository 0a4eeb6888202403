"""Heal: align a pruned network's internal states with the dense one's, by gradient."""

from dataclasses import dataclass
from typing import ClassVar

from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.passes.heal.checkpoint import checkpoint_of
from tilewright.passes.heal.training import Training, check_options, examples
from tilewright.protocol import Context, Note, Outcome


@dataclass(frozen=True)
class Heal:
    """Train what is left of a pruned network to do inside what the dense one does.

    The loss is the mean over internal states, and over the positions of each, of
    1 - cos(pruned, dense), the features at a position being a vector: axis 1 of images, the
    last axis of others. With loss="squares" it is |pruned - dense|^2 relative to the mean
    |dense|^2, which minds lengths too. States are the sums of residual streams and the outputs.
    With loss="divergence", for outputs that are scores of classes (of single samples, or of the
    next words of a text), their Kullback-Leibler divergence from the dense network's is added
    to the squares (Hinton et al., arXiv 1503.02531, at a temperature of 1). Positions that a
    mask among the inputs leaves out do not count. There are no labels.

    Weights that are zero stay zero. Adam's rate, which is relative to the size of each output's
    weights, rises to `rate` and falls by a cosine, for `epochs` over the calibration samples,
    `batch` at a time, but for one sample in eight: after each epoch the answers on those are
    compared with the dense network's, by squares or by the divergence of scores alone, and the
    weights whose answers were nearest are kept. The first epochs, at a high rate, may be worse
    than none. Interrupted, it goes on from the last epoch when run again.

    That biases and the scales of normalizations are trained too, that the cosine is that of
    single positions, the squares and the divergence are ours: the paper leaves it open. Needs
    torch.
    """

    epochs: int = 8
    rate: float = 2e-3
    batch: int = 16
    loss: str = "cosine"

    name: ClassVar[str] = "heal"
    source: ClassVar[str] = "STARFISH (arXiv 2606.01126)"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.FINITE_WEIGHTS})
    gives: ClassVar[frozenset[Fact]] = frozenset()
    takes: ClassVar[frozenset[Fact]] = frozenset()
    keeps_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise UnusableInput where an option makes no sense."""
        check_options(self)

    def check(self, context: Context, /) -> None:
        """Raise UnusableInput without calibration data or torch."""
        examples(self, context)

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Return the graph with the weights that were best on the samples held out.

        Raises UnusableInput without calibration data or torch, and where there is no gradient
        through the network.
        """
        calibration = examples(self, context)
        if context.dense is None or context.dense is graph:
            return Outcome(graph, (Note("heal", "nothing was pruned before it"),))
        pruned = graph.edit().sorted()
        training = Training(self, pruned, context.dense, calibration, context.seed)
        training.settle()
        checkpoint = checkpoint_of(self, [pruned, context.dense], calibration, context)
        healed = training.run(checkpoint, context.report)
        if training.best < training.first:
            return Outcome(healed)
        reason = (
            "no epoch brought the answers on the samples held out nearer to the dense ones, "
            "so the weights are what they were: give more samples, or a lower rate"
        )
        context.report(f"heal: {reason}")
        return Outcome(healed, (Note("heal", reason),))
