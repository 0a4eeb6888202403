"""Refits in view of the activation behind a layer: what it flattens need not be right.

With f behind it a layer is to give f(y), not y: what ReLU takes to zero may be any negative
number. Least squares on y is where it starts; from there the weights of each output go down
|f(w x + b) - f(y)|^2 by conjugate gradients. A step is as long as Gauss and Newton have it, and
directions are preconditioned by the Hessian of least squares, which is at hand: a few will do.
Zhang et al., "Accelerating Very Deep Convolutional Networks" (2016), section 3.2, do this for
ReLU, by other means.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tilewright.graph import Graph
from tilewright.layers import Layer
from tilewright.passes.prune.activation import Activation, activation_behind
from tilewright.passes.prune.bias import bias_of, shift
from tilewright.passes.prune.refit import Fit, settle
from tilewright.segments import Columns
from tilewright.threads import spread_over_cores

_ROUNDS = 6
_COLUMNS = 16384  # that are looked at, if inputs are no more than a quarter of that
_COLUMNS_PER_INPUT = 4
_NUMBERS = 1 << 27  # that the columns hold at most
_ROWS = 128  # of outputs, which one core works on
_ENTRIES = 1 << 24  # of the inverse Hessians of these, unless one has more
_STEP = 1e-2  # to both sides, relative to the outputs' mean, over which slopes are taken
_LONGEST = 32.0  # times the step of least squares, where few positions count
_SHORTER = (4.0, math.inf)  # times, where a step went too far
_TINY = 1e-30


class Rows(NamedTuple):
    """Some of a layer's outputs, and the inputs that they have weights for."""

    rows: np.ndarray
    columns: np.ndarray


def settle_before_activation(
    layer: Layer,
    fitted: Fit,
    uses: Mapping[str, int],
    solved: Sequence[np.ndarray],
    support: Sequence[Rows],
    seen: Callable[[], Iterator[Columns]],
    graph: Graph,
) -> None:
    """Do as `settle`, and then in view of what an activation behind the layer flattens.

    The layer is one of `graph` and has its dense weights yet. `seen` yields the inputs that
    `fitted` was made of, and what was solved is zero outside the `support`.
    """
    matrix, bias = layer.matrix(), bias_of(layer, uses)
    given = np.zeros(len(matrix)) if bias is None else bias.values.reshape(-1)
    settle(layer, fitted, uses, solved)
    if len(fitted.problems) > 1 or matrix.dtype != np.float32:
        return
    activation = activation_behind(layer, graph, uses)
    if activation is None:
        return
    share, dense, now = _chosen(seen(), fitted.columns, layer.inputs)
    mean = np.zeros(layer.inputs) if bias is None else fitted.means[1]
    now -= mean.astype(np.float32)[:, None]
    hessian, damping = share * fitted.problems[0].hessian, share * fitted.damping[0]
    start = layer.matrix()
    offset = given if bias is None else bias.values.reshape(-1) + _applied(start, mean)

    def improved(block: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.concatenate([part.rows for part in block])
        wanted = matrix[rows] @ dense + given[rows, None].astype(np.float32)
        steps = _Steps(block, hessian)
        # Outputs that leave the numbers there are, such as exponentials, stay as they are.
        with np.errstate(over="ignore", invalid="ignore"):
            descent = _Descent(
                activation, now, wanted, steps, damping, matrix[rows], has_bias=bias is not None
            )
            return descent.run(start[rows].astype(np.float64), offset[rows])

    blocks = _blocks(support)
    better, moved = np.zeros(matrix.shape), offset.astype(np.float64)
    for block, (weights, own) in zip(blocks, spread_over_cores(improved, blocks), strict=True):
        rows = np.concatenate([part.rows for part in block])
        better[rows], moved[rows] = weights, own
    layer.replace(better)
    if bias is not None:
        shift(bias, moved - _applied(layer.matrix(), mean) - bias.values.reshape(-1))


class _Steps:
    """Where gradients lead in least squares, each output's on its own support."""

    def __init__(self, block: Sequence[Rows], hessian: np.ndarray) -> None:
        starts = np.cumsum([0, *(len(part.rows) for part in block)])
        self._parts = [
            (
                np.ix_(np.arange(start, start + len(part.rows)), part.columns),
                np.linalg.inv(hessian[np.ix_(part.columns, part.columns)]).astype(np.float32),
            )
            for start, part in zip(starts[:-1], block, strict=True)
        ]

    def within(self, gradient: np.ndarray) -> np.ndarray:
        """Return a gradient (outputs, inputs) with zeros outside the support."""
        kept = np.zeros_like(gradient)
        for at, _ in self._parts:
            kept[at] = gradient[at]
        return kept

    def of(self, gradient: np.ndarray) -> np.ndarray:
        """Return the gradient times the inverse Hessian."""
        steps = np.zeros_like(gradient)
        for at, inverse in self._parts:
            steps[at] = gradient[at] @ inverse
        return steps


class _Descent:
    """Outputs on their way down |f(w x + b) - f(y)|^2 + damping (w - v)^2.

    Inputs are (inputs, columns), outputs (outputs, columns); v are the `dense` weights.
    """

    def __init__(
        self,
        activation: Activation,
        inputs: np.ndarray,
        wanted: np.ndarray,
        steps: _Steps,
        damping: np.ndarray,
        dense: np.ndarray,
        *,
        has_bias: bool,
    ) -> None:
        self._activation, self._inputs, self._steps = activation, inputs, steps
        self._dense = dense.astype(np.float64)
        self._aim = activation(wanted)
        self._step = np.maximum(_STEP * np.abs(wanted).mean(axis=1, keepdims=True), _TINY)
        # As least squares has it, in units of what comes out of the activation.
        steep = np.square(self._slopes(wanted)).mean(axis=1, dtype=np.float64)
        self._damping = steep[:, None] * damping
        self._bias_step = 1 / inputs.shape[1] if has_bias else 0.0

    def run(self, weights: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and biases that lose no more on these columns than the given ones."""
        z = self._given(weights, bias)
        residual, loss = self._judged(z, weights)
        ahead = aside = np.zeros(1)
        before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        for _ in range(_ROUNDS):
            slopes = self._slopes(z)
            steep = slopes * residual
            down = steep @ self._inputs.T + (weights - self._dense) * self._damping
            down = self._steps.within(down)
            down_bias = steep.sum(axis=1, dtype=np.float64)
            freed, freed_bias = self._steps.of(down), down_bias * self._bias_step
            height = (down * freed).sum(axis=1) + down_bias * freed_bias
            turn = np.zeros(len(weights))
            if before is not None:
                old = (before[0] * freed).sum(axis=1) + before[1] * freed_bias
                # Polak and Ribiere's, begun anew where it is negative.
                turn = np.maximum(height - old, 0) / np.maximum(before[2], _TINY)
            before = down, down_bias, height
            ahead = turn[:, None] * ahead - freed
            aside = turn * aside - freed_bias
            uphill = (down * ahead).sum(axis=1) + down_bias * aside >= 0
            ahead = np.where(uphill[:, None], -freed, ahead)
            aside = np.where(uphill, -freed_bias, aside)
            lost = ~np.isfinite(ahead).all(axis=1) | ~np.isfinite(aside)
            ahead, aside = np.where(lost[:, None], 0, ahead), np.where(lost, 0, aside)
            change = self._given(ahead, aside)
            length = self._length(slopes * change, residual, weights, ahead)
            for shorter in _SHORTER:
                fresh = weights + length[:, None] * ahead
                _, fallen = self._judged(z + _column(length) * change, fresh)
                length = np.where(fallen <= loss, length, length / shorter)
            weights = weights + length[:, None] * ahead
            bias = bias + length * aside
            z = z + _column(length) * change
            residual, loss = self._judged(z, weights)
        return weights, bias

    def _given(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        given = weights.astype(np.float32) @ self._inputs
        return np.asarray(given + _column(np.broadcast_to(bias, len(weights))))

    def _judged(self, z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is too much, and the loss of each output."""
        residual = self._activation(z) - self._aim
        away = (np.square(weights - self._dense) * self._damping).sum(axis=1)
        return residual, np.einsum("rn,rn->r", residual, residual, dtype=np.float64) + away

    def _slopes(self, z: np.ndarray) -> np.ndarray:
        rise = self._activation(z + self._step) - self._activation(z - self._step)
        return np.asarray(rise / (2 * self._step))

    def _length(
        self, rise: np.ndarray, residual: np.ndarray, weights: np.ndarray, ahead: np.ndarray
    ) -> np.ndarray:
        """Return how far to go, if the activation were as straight as it is here."""
        gain = np.einsum("rn,rn->r", rise, residual, dtype=np.float64)
        gain += ((weights - self._dense) * ahead * self._damping).sum(axis=1)
        curve = np.einsum("rn,rn->r", rise, rise, dtype=np.float64)
        curve += (np.square(ahead) * self._damping).sum(axis=1)
        length = np.nan_to_num(-gain / np.maximum(curve, _TINY))
        return np.asarray(np.clip(length, 0, _LONGEST))


def _blocks(support: Sequence[Rows]) -> list[list[Rows]]:
    """Group outputs, up to 128 together: products of a few rows are slow."""
    blocks: list[list[Rows]] = []
    rows = entries = 0
    for each in support:
        for start in range(0, len(each.rows), _ROWS):
            part = Rows(each.rows[start : start + _ROWS], each.columns)
            rows, entries = rows + len(part.rows), entries + len(part.columns) ** 2
            if not blocks or rows > _ROWS or entries > _ENTRIES:
                blocks.append([])
                rows, entries = len(part.rows), len(part.columns) ** 2
            blocks[-1].append(part)
    return blocks


def _chosen(
    columns: Iterator[Columns], total: int, inputs: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return a random choice of `total` columns, in both networks, and which share that is."""
    limit = min(max(_COLUMNS, _COLUMNS_PER_INPUT * inputs), _NUMBERS // inputs)
    rng = np.random.default_rng(total)
    chosen = []
    for each in columns:
        kept = rng.random(len(each.chosen)) * total < limit
        chosen.append((each.dense[:, kept], each.now[:, kept]))
    dense, now = (np.concatenate(parts, axis=1) for parts in zip(*chosen, strict=True))
    return dense.shape[1] / total, dense, now


def _applied(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(matrix.astype(np.float64) @ x)


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None]
