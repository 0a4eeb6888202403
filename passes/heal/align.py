"""Heal: align a pruned network's internal states with the dense one's, by gradient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tilewright import oracle
from tilewright.autograd import Differentiable, require_torch
from tilewright.calibration import Calibration
from tilewright.columns import real_positions
from tilewright.errors import UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph, constant, with_outputs
from tilewright.passes.heal.checkpoint import Checkpoint, key_of
from tilewright.passes.heal.states import internal_states, supports, vectors
from tilewright.protocol import Context, Feeds, Note, Outcome, Report
from tilewright.threads import spread_over_cores

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT = 8  # one calibration sample of so many says which weights are best
_PATIENCE = 3  # epochs without a better one, after which training stops
_WARM_UP = 0.1  # of all steps, in which the rate rises
_LEAST = 0.01  # of the rate
_AT_ONCE = 8  # samples that a thread judges together
_TINY = 1e-20


@dataclass(frozen=True)
class Heal:
    """Train what is left of a pruned network to do inside what the dense one does.

    The loss is the mean over internal states, and over the positions of each, of
    1 - cos(pruned, dense), the features at a position being a vector: axis 1 of images, the
    last axis of others. With loss="squares" it is |pruned - dense|^2 relative to the mean
    |dense|^2, which minds lengths too. States are the sums of residual streams and the outputs.
    Positions that a mask among the inputs leaves out do not count. There are no labels.

    Weights that are zero stay zero. Adam's rate rises to `rate` and falls by a cosine, for
    `epochs` over the calibration samples, `batch` at a time, but for one sample in eight: those
    judge after each epoch, the best weights are kept, and it ends when three epochs in a row
    were not better. Interrupted, it goes on from the last epoch when it is run again.

    That biases and the scales of normalizations are trained too, that the cosine is that of
    single positions, and the squares, are ours: the paper leaves it open. Needs torch.
    """

    epochs: int = 8
    rate: float = 1e-4
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
        for option, value in (("epochs", self.epochs), ("batch", self.batch)):
            if value < 1:
                raise _wrong(option, value, "a whole number from 1 on")
        if not 0 < self.rate < 1:
            raise _wrong("rate", self.rate, "a number above 0 and below 1, such as 0.0001")
        if self.loss not in _AWAY:
            raise _wrong("loss", self.loss, " or ".join(f'"{name}"' for name in _AWAY))

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Return the graph with the weights that were best on the samples held out.

        Raises UnusableInput without calibration data or torch, and where there is no gradient
        through the network.
        """
        require_torch("heal")
        if context.calibration is None:
            raise UnusableInput(
                "heal: it aligns what a network does on example inputs, and there are none. "
                "Give --calibration FILE.npz."
            )
        if context.dense is None or context.dense is graph:
            return Outcome(graph, (Note("heal", "nothing was pruned before it"),))
        healed = graph.edit().sorted()
        for name, values in self._trained(healed, context.dense, context).items():
            tensor = healed.gs.tensors()[name]
            tensor.values = constant(name, values).values
        return Outcome(healed)

    def _trained(self, graph: Graph, dense: Graph, context: Context) -> dict[str, np.ndarray]:
        """Return the best weights, by name."""
        assert context.calibration is not None
        training = _Training(self, graph, dense, context.calibration, context.seed)
        key = key_of((self, context.seed), [graph, dense], context.calibration)
        checkpoint = Checkpoint(context.unfinished, key, context.report)
        if (state := checkpoint.read()) is not None:
            training.resume(state)
            context.report(f"heal: going on after epoch {training.epoch} of {self.epochs}")
        while training.epoch < self.epochs and training.waited < _PATIENCE:
            training.run_epoch(context.report)
            checkpoint.write(training.state())
        checkpoint.remove()
        return training.weights()


class _Training:
    """The student on its way: weights, optimizer, and the best so far."""

    def __init__(
        self, options: Heal, graph: Graph, dense: Graph, calibration: Calibration, seed: int
    ) -> None:
        self._torch = require_torch("heal")
        # Threads of ours run samples side by side, each on one thread of torch's.
        self._torch.set_num_threads(1)
        self._options, self._seed = options, seed
        self._wanted = internal_states(graph, dense)
        self._teacher = oracle.session(with_outputs(dense, self._wanted), threads=1)
        masks = supports(graph)
        self._student = Differentiable(graph, [*masks, *vectors(graph)])
        self._masks = {n: self._torch.from_numpy(mask) for n, mask in masks.items()}
        fitted, held = calibration.held_out(_HELD_OUT)
        self._samples, self._judges = list(fitted.feeds()), list(held.feeds())
        weights = list(self._student.weights.values())
        self._optimizer = self._torch.optim.Adam(weights, lr=options.rate)
        self.epoch = self.waited = 0
        self.first = self.best = self._judged()
        self._best = self._copied()

    def run_epoch(self, report: Report) -> None:
        """Go over all samples once, and judge."""
        options, count = self._options, len(self._samples)
        order = np.random.default_rng([self._seed, self.epoch]).permutation(count)
        for start in range(0, count, options.batch):
            progress = (self.epoch + start / count) / options.epochs
            self._step(
                [self._samples[i] for i in order[start : start + options.batch]], progress
            )
            done = min(start + options.batch, count)
            report(
                f"heal: epoch {self.epoch + 1} of {options.epochs}, {done} of {count} samples; "
                f"loss {self.first:.5f}, now {self.best:.5f}"
            )
        self.epoch += 1
        self.waited += 1
        if (loss := self._judged()) < self.best:
            self.best, self._best, self.waited = loss, self._copied(), 0

    def weights(self) -> dict[str, np.ndarray]:
        """Return the best weights so far, by name."""
        return {name: tensor.numpy() for name, tensor in self._best.items()}

    def state(self) -> dict[str, Any]:
        """Return all that `resume` needs."""
        return {
            "epoch": self.epoch,
            "waited": self.waited,
            "losses": (self.first, self.best),
            "best": self._best,
            "weights": self._copied(),
            "optimizer": self._optimizer.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.epoch, self.waited = state["epoch"], state["waited"]
        (self.first, self.best), self._best = state["losses"], state["best"]
        with self._torch.no_grad():
            for name, weight in self._student.weights.items():
                weight.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    def _step(self, batch: Sequence[Feeds], progress: float) -> None:
        weights = list(self._student.weights.values())
        parts = spread_over_cores(
            lambda part: self._torch.autograd.grad(self._losses(part).sum(), weights),
            _parts(batch, -(-len(batch) // oracle.cores())),
        )
        for name, weight, *gradients in zip(
            self._student.weights, weights, *parts, strict=True
        ):
            # Where the gradient was always zero, Adam moves nothing.
            weight.grad = sum(gradients) / len(batch) * self._masks.get(name, 1)
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.rate * _share_of_rate(progress)
        self._optimizer.step()

    def _judged(self) -> float:
        """Return the mean loss of the samples held out."""

        def one(part: Sequence[Feeds]) -> float:
            with self._torch.no_grad():
                return float(self._losses(part).sum())

        return sum(spread_over_cores(one, _parts(self._judges, _AT_ONCE))) / len(self._judges)

    def _losses(self, samples: Sequence[Feeds]) -> "Tensor":
        """Return the loss of each sample."""
        torch = self._torch
        feeds = {n: torch.from_numpy(np.stack([s[n] for s in samples])) for n in samples[0]}
        found = self._student(feeds, self._wanted)
        aims = [oracle.outputs_of(self._teacher, sample) for sample in samples]
        losses: Tensor = torch.zeros(len(samples))
        for name in self._wanted:
            aim = torch.from_numpy(np.stack([each[name] for each in aims]))
            away = _AWAY[self._options.loss](found[name], aim, 2 if aim.ndim > 4 else -1)
            counted = [real_positions(sample, away.shape[1:]) for sample in samples]
            real = torch.from_numpy(np.stack(counted)).flatten(1)
            losses = losses + (away.flatten(1) * real).sum(1) / real.sum(1)
        return losses / len(self._wanted)

    def _copied(self) -> dict[str, "Tensor"]:
        return {name: w.detach().clone() for name, w in self._student.weights.items()}


def _angles(found: "Tensor", aim: "Tensor", axis: int) -> "Tensor":
    dots = (found * aim).sum(axis)
    away: Tensor = 1 - dots / (found.norm(dim=axis) * aim.norm(dim=axis)).clamp_min(_TINY)
    return away


def _squares(found: "Tensor", aim: "Tensor", axis: int) -> "Tensor":
    energy = aim.square().sum(axis)
    per_sample = energy.flatten(1).mean(1).reshape(-1, *[1] * (energy.ndim - 1))
    away: Tensor = (found - aim).square().sum(axis) / per_sample.clamp_min(_TINY)
    return away


# How far the features at each position are from where they should be, by `loss`.
_AWAY = {"cosine": _angles, "squares": _squares}


def _share_of_rate(progress: float) -> float:
    """Return how much of the rate is learned with after this share of all steps."""
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, _LEAST)
    falling = (progress - _WARM_UP) / (1 - _WARM_UP)
    return _LEAST + (1 - _LEAST) * (1 + math.cos(math.pi * falling)) / 2


def _parts(samples: Sequence[Feeds], size: int) -> list[Sequence[Feeds]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _wrong(option: str, value: object, wanted: str) -> UnusableInput:
    return UnusableInput(f"heal: {option} is {value}, but must be {wanted}.")
