"""Training: bring a network's internal states near to the dense network's, by gradient."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from tilewright import oracle
from tilewright.autograd import Differentiable, require_torch
from tilewright.calibration import Calibration
from tilewright.columns import real_positions
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, constant, with_outputs
from tilewright.layers import linear_layers
from tilewright.memory import keeping_freed_memory
from tilewright.passes.heal.checkpoint import Checkpoint
from tilewright.passes.heal.losses import (
    STATES,
    Measure,
    aligned_scores,
    divergence,
    judge_of,
)
from tilewright.protocol import Context, Feeds, Report
from tilewright.states import internal_states, supports, vectors
from tilewright.threads import spread_over_cores

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT = 8  # one calibration sample of so many says which weights are best
_WARM_UP = 0.1  # of all steps, in which the rate rises
_LEAST = 0.01  # of the rate

# What happens before a step: it gets the number of the step, and its samples.
Before = Callable[[int, Sequence[Feeds]], None]


def nothing(_: int, __: Sequence[Feeds]) -> None:
    """Let the step begin."""


class Options(Protocol):
    """A pass that trains: its name, epochs over the samples, Adam's rate, samples a step."""

    name: ClassVar[str]

    @property
    def epochs(self) -> int:
        """How often each sample is seen."""

    @property
    def rate(self) -> float:
        """Adam's at its highest, relative to the root mean square of an output's weights."""

    @property
    def batch(self) -> int:
        """Samples a step."""

    @property
    def loss(self) -> str:
        """What is made small: "cosine", "squares" or "divergence"."""


def check_options(options: Options) -> None:
    """Raise UnusableInput where an option makes no sense."""
    for option, value in (("epochs", options.epochs), ("batch", options.batch)):
        if value < 1:
            raise wrong(options, option, value, "a whole number from 1 on")
    if not 0 < options.rate < 1:
        wanted = "a number above 0 and below 1, such as 0.0001"
        raise wrong(options, "rate", options.rate, wanted)
    if options.loss not in STATES:
        wanted = ", ".join(f'"{name}"' for name in STATES)
        raise wrong(options, "loss", options.loss, f"one of {wanted}")


def wrong(options: Options, option: str, value: object, wanted: str) -> UnusableInput:
    """Return the error of an option that makes no sense."""
    return UnusableInput(f"{options.name}: {option} is {value}, but must be {wanted}.")


def examples(options: Options, context: Context) -> Calibration:
    """Return what to train on. Raises UnusableInput without it, and without torch."""
    require_torch(options.name)
    if context.calibration is None:
        raise UnusableInput(
            f"{options.name}: it aligns what a network does on example inputs, and there are "
            "none. Give --calibration FILE.npz."
        )
    return context.calibration


class Training:
    """The student on its way: weights, optimizer, and the best so far.

    The weights of linear layers that are zero stay zero, until `change` says otherwise. There
    is a best only from `settle` on, when what is zero does not change any more. Its answers are
    nearest to the dense network's on the samples held out: `first` and `best` are errors of
    answers, before all training and of the best.
    """

    def __init__(
        self, options: Options, graph: Graph, dense: Graph, calibration: Calibration, seed: int
    ) -> None:
        """Make `graph`, which has its nodes in order, trainable.

        Raises UnusableInput where there is no gradient through it, or nothing to train.
        """
        self._torch = require_torch(options.name)
        self._options, self._seed, self._graph = options, seed, graph
        self._states = internal_states(graph, dense)
        self._scores = aligned_scores(options.name, options.loss, graph, dense)
        aligned = list(dict.fromkeys((*self._states, *self._scores)))
        self._teacher = oracle.session(with_outputs(dense, aligned), threads=1)
        masks = supports(graph)
        self._student = Differentiable(graph, [*masks, *vectors(graph)])
        self._masks = {n: self._torch.from_numpy(mask) for n, mask in masks.items()}
        fitted, held = calibration.held_out(_HELD_OUT)
        self._samples = list(fitted.feeds())
        self._away = judge_of(dense, held, self._scores)
        weights = self._student.weights
        if not weights:
            raise UnusableInput(
                f"{options.name}: no weights of the network are float32, and no others are "
                f"trained. Leave {options.name} out, or give the model in float32."
            )
        # Folded normalizations make rows of very different size: each learns as if of size 1.
        axes = {str(layer.weight.name): layer.output_axis for layer in linear_layers(graph)}
        self._sizes = {n: _size(w.detach(), axes.get(n)) for n, w in weights.items()}
        self._relative = {n: w.detach() / self._sizes[n] for n, w in weights.items()}
        self._optimizer = self._torch.optim.Adam(self._relative.values(), lr=options.rate)
        self.epoch = 0
        self.first = self.best = math.inf
        self._best: dict[str, Tensor] = {}

    @property
    def steps_per_epoch(self) -> int:
        """How many batches the samples make."""
        return -(-len(self._samples) // self._options.batch)

    def run(self, checkpoint: Checkpoint, report: Report, before: Before = nothing) -> Graph:
        """Train to the end, from where `checkpoint` says; return the graph at its best."""
        epochs = self._options.epochs
        if (state := checkpoint.read()) is not None:
            self._resume(state)
            report(f"{self._options.name}: going on after epoch {self.epoch} of {epochs}")
        with keeping_freed_memory():
            while self.epoch < epochs:
                self._run_epoch(report, before)
                checkpoint.write(self._state())
        checkpoint.remove()
        assert self._best, "training ended before it was settled what is zero"
        return self._graph_with(self._best)

    def settle(self) -> None:
        """Judge from now on: what is zero stays zero."""
        self._best = self._copied()
        self.first = self.best = self._away(self._graph_with(self._best))

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights as they are, by name."""
        return {name: tensor.numpy() for name, tensor in self._copied().items()}

    def gradients(self, batch: Sequence[Feeds]) -> dict[str, np.ndarray]:
        """Return those of the mean loss, of weights that are kept at zero too, by name."""
        found = zip(self._student.weights, self._gradients(batch), strict=True)
        return {name: gradient.numpy() for name, gradient in found}

    def change(self, masks: Mapping[str, np.ndarray]) -> None:
        """Say anew which weights may be other than zero; True where they may.

        Those that may not become zero. Those that may again start from zero, and the optimizer
        forgets what it knew of both.
        """
        with self._torch.no_grad():
            for name, mask in masks.items():
                new = self._torch.from_numpy(np.array(mask))
                anew = ~(new & self._masks[name])
                weight = self._student.weights[name]
                relative = self._relative[name]
                weight.masked_fill_(anew, 0)
                relative.masked_fill_(anew, 0)
                for kind in ("exp_avg", "exp_avg_sq"):
                    if kind in self._optimizer.state[relative]:
                        self._optimizer.state[relative][kind].masked_fill_(anew, 0)
                self._masks[name] = new

    def losses(self, samples: Sequence[Feeds]) -> "Tensor":
        """Return the loss of each sample."""
        torch = self._torch
        feeds = {n: torch.from_numpy(np.stack([s[n] for s in samples])) for n in samples[0]}
        aims = [oracle.outputs_of(self._teacher, sample) for sample in samples]
        found = self._student(feeds, list(aims[0]))

        def away(name: str, measure: Measure, axis_of_images: int) -> "Tensor":
            aim = torch.from_numpy(np.stack([each[name] for each in aims]))
            each = measure(found[name], aim, axis_of_images if aim.ndim > 4 else -1)
            counted = [real_positions(sample, each.shape[1:]) for sample in samples]
            real = torch.from_numpy(np.stack(counted)).reshape(len(samples), -1)
            mean: Tensor = (each.reshape(len(samples), -1) * real).sum(1) / real.sum(1)
            return mean

        losses: Tensor = torch.zeros(len(samples))
        for name in self._states:
            measure = STATES[self._options.loss]
            losses = losses + away(name, measure, 2) / len(self._states)
        for name in self._scores:
            losses = losses + away(name, divergence, -1) / len(self._scores)
        return losses

    def _run_epoch(self, report: Report, before: Before) -> None:
        """Go over all samples once, and judge."""
        options, count = self._options, len(self._samples)
        order = np.random.default_rng([self._seed, self.epoch]).permutation(count)
        for index, start in enumerate(range(0, count, options.batch)):
            batch = [self._samples[i] for i in order[start : start + options.batch]]
            before(self.epoch * self.steps_per_epoch + index, batch)
            self._step(batch, (self.epoch + start / count) / options.epochs)
            done = min(start + options.batch, count)
            now = (
                f"; error {self.first:.5f} before, {self.best:.5f} at best"
                if self._best
                else ""
            )
            report(
                f"{options.name}: epoch {self.epoch + 1} of {options.epochs}, "
                f"{done} of {count} samples{now}"
            )
        self.epoch += 1
        if not self._best:
            return
        weights = self._copied()
        if (error := self._away(self._graph_with(weights))) < self.best:
            self.best, self._best = error, weights

    def _state(self) -> dict[str, Any]:
        """Return all that `_resume` needs."""
        return {
            "epoch": self.epoch,
            "errors": (self.first, self.best),
            "best": self._best,
            "relative": self._relative,
            "masks": self._masks,
            "optimizer": self._optimizer.state_dict(),
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `_state` returned."""
        self.epoch = state["epoch"]
        (self.first, self.best), self._best = state["errors"], state["best"]
        self._masks = dict(state["masks"])
        with self._torch.no_grad():
            for name, relative in self._relative.items():
                relative.copy_(state["relative"][name])
            self._follow()
        self._optimizer.load_state_dict(state["optimizer"])

    def _step(self, batch: Sequence[Feeds], progress: float) -> None:
        found = zip(self._relative.items(), self._gradients(batch), strict=True)
        for (name, relative), gradient in found:
            # Where the gradient was always zero, Adam moves nothing.
            relative.grad = gradient * self._sizes[name] * self._masks.get(name, 1)
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.rate * _share_of_rate(progress)
        self._optimizer.step()
        self._follow()

    def _follow(self) -> None:
        """Give the student the weights that the optimizer moved."""
        with self._torch.no_grad():
            for name, weight in self._student.weights.items():
                weight.copy_(self._relative[name] * self._sizes[name])

    def _gradients(self, batch: Sequence[Feeds]) -> "list[Tensor]":
        weights = list(self._student.weights.values())
        with self._one_torch_thread():
            parts = spread_over_cores(
                lambda part: self._torch.autograd.grad(
                    self.losses(part).sum(), weights, materialize_grads=True
                ),
                _parts(batch, -(-len(batch) // oracle.cores())),
            )
        return [sum(gradients) / len(batch) for gradients in zip(*parts, strict=True)]

    def _graph_with(self, weights: "Mapping[str, Tensor]") -> Graph:
        graph = self._graph.edit()
        tensors = graph.gs.tensors()
        for name, values in weights.items():
            tensors[name].values = constant(name, values.numpy()).values
        return graph

    @contextlib.contextmanager
    def _one_torch_thread(self) -> Iterator[None]:
        """Threads of ours run samples side by side, each on one thread of torch's."""
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(1)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _copied(self) -> dict[str, "Tensor"]:
        return {name: w.detach().clone() for name, w in self._student.weights.items()}


def _size(values: "Tensor", axis: int | None) -> "Tensor":
    """Return the root mean square of what is not zero, along `axis` or of all; 1 for zeros.

    It is the nearest power of two: dividing by it and multiplying again rounds nothing.
    """
    others = [i for i in range(values.ndim) if i != axis]
    counts = (values != 0).sum(others, keepdim=True).clamp_min(1)
    squares = values.square().sum(others, keepdim=True) / counts
    result: Tensor = (squares.where(squares > 0, 1.0).log2() / 2).round().exp2()
    return result


def _share_of_rate(progress: float) -> float:
    """Return how much of the rate is learned with after this share of all steps."""
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, _LEAST)
    falling = (progress - _WARM_UP) / (1 - _WARM_UP)
    return _LEAST + (1 - _LEAST) * (1 + math.cos(math.pi * falling)) / 2


def _parts(samples: Sequence[Feeds], size: int) -> list[Sequence[Feeds]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]
