"""Discrimination-aware channel pruning: keep the channels that tell the classes apart.

A layer computes O = W X. Of its input channels those are chosen, greedily forward, that lower

    L(V) = |W X - V X|^2 / (2 |W X|^2) + balance CE(softmax(H pool(V X) + b), labels)

most: how well the layer's outputs are met, and how well a linear head that was trained on the
dense layer's outputs, averaged over a sample's positions, still tells the labels. Zhuang et
al., "Discrimination-aware Channel Pruning" (2018), Algorithm 1. What is ours:

- |W X|^2 takes the place of the number of outputs, so that balance=1 means the same in every
  layer. It is theirs where outputs have a mean square of 1, as behind a BatchNorm.
- There is no ReLU before the average, so L is convex in V, and of X it needs the Gram matrix
  and the samples' averages alone.
- V is solved for instead of trained.

A channel's gradient is measured by its Frobenius norm, as in the paper; the authors' code adds
up the norms of each output's kernel.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax


class Head(NamedTuple):
    """A linear classifier: `weights` (classes, features) and `bias` (classes,)."""

    weights: np.ndarray
    bias: np.ndarray


class LabelledLayer(NamedTuple):
    """A layer and what its outputs are for.

    `weights` is W, (outputs, inputs); `gram` is X X^T, positive definite, so damped where need
    be; `pooled` (samples, inputs) holds the mean of X over each sample's positions, `labels`
    (samples,) its class from 0 on, or the dense network's answer.
    """

    weights: np.ndarray
    gram: np.ndarray
    pooled: np.ndarray
    labels: np.ndarray
    head: Head
    balance: float = 1.0


class Selection(NamedTuple):
    """Channels in the order in which they were chosen, and what comes of them.

    `losses` are those before the first and after every round; `weights` (outputs, inputs) are
    zero for all other channels.
    """

    channels: list[int]
    losses: list[float]
    weights: np.ndarray


def train_head(features: np.ndarray, labels: np.ndarray, ridge: float = 1e-3) -> Head:
    """Return the head of multinomial logistic regression.

    `features` is (samples, features), `labels` (samples,) from 0 on; `ridge` times half the
    squared weights is added to the mean cross-entropy.
    """
    classes, width = int(labels.max()) + 1, features.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-classes].reshape(classes, width), flat[-classes:]
        entropy, slope = _cross_entropy(features @ weights.T + bias, labels)
        value = entropy + ridge / 2 * float(np.square(weights).sum())
        gradient = slope.T @ features + ridge * weights
        return value, np.concatenate([gradient.ravel(), slope.sum(axis=0)])

    flat = minimize(objective, np.zeros(classes * (width + 1)), jac=True, method="L-BFGS-B").x
    return Head(flat[:-classes].reshape(classes, width), flat[-classes:])


def loss(layer: LabelledLayer, weights: np.ndarray) -> float:
    """Return L at these weights, (outputs, inputs)."""
    change = weights - layer.weights
    missed = float(np.sum((change @ layer.gram) * change)) / _energy(layer) / 2
    entropy, _ = _cross_entropy(_logits(layer, weights), layer.labels)
    return missed + layer.balance * entropy


def gradient(layer: LabelledLayer, weights: np.ndarray) -> np.ndarray:
    """Return dL/dV at these weights, (outputs, inputs)."""
    _, slope = _cross_entropy(_logits(layer, weights), layer.labels)
    missed = (weights - layer.weights) @ layer.gram / _energy(layer)
    return np.asarray(missed + layer.balance * layer.head.weights.T @ (slope.T @ layer.pooled))


def refit(layer: LabelledLayer, inputs: np.ndarray) -> np.ndarray:
    """Return the weights with the least L that are zero but for these inputs.

    Without the second term they are W C_A (C_AA)^-1, C being the Gram matrix and A the inputs.
    With it they differ from that by some H^T M, M of (classes, inputs): that is searched for,
    in coordinates in which the first term is round.
    """
    weights = np.zeros_like(layer.weights, dtype=np.float64)
    root = cholesky(layer.gram[np.ix_(inputs, inputs)].astype(np.float64), lower=True)
    right = layer.weights @ layer.gram[:, inputs]
    weights[:, inputs] = cho_solve((root, True), right.T).T
    if not layer.balance:
        return weights
    start = _logits(layer, weights)
    whitened = solve_triangular(root, layer.pooled[:, inputs].T, lower=True).T
    # H^T = Q R, so that a step of length 1 costs the same in every direction.
    basis, triangle = np.linalg.qr(layer.head.weights.T)
    shape, energy = (basis.shape[1], len(inputs)), _energy(layer)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        step = flat.reshape(shape) * np.sqrt(energy)
        entropy, slope = _cross_entropy(start + whitened @ step.T @ triangle, layer.labels)
        value = float(flat @ flat) / 2 + layer.balance * entropy
        turn = layer.balance * np.sqrt(energy) * (triangle @ slope.T @ whitened)
        return value, flat + turn.ravel()

    found = minimize(
        objective,
        np.zeros(shape[0] * shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-8, "ftol": 1e-14, "maxiter": 500},
    ).x
    step = found.reshape(shape) * np.sqrt(energy)
    weights[:, inputs] += basis @ solve_triangular(root, step.T, lower=True, trans="T").T
    return weights


def select(
    layer: LabelledLayer,
    channels: np.ndarray,
    kept: int,
    together: int = 1,
    tolerance: float = 0.0,
) -> Selection:
    """Choose input channels, those with the largest gradient first, `together` in a round.

    `channels` (inputs,) says from 0 on which channel each input belongs to; with `balance` 0
    and one input a channel this is orthogonal matching pursuit. It ends with `kept` channels,
    or after a round that lowers the loss by no more than `tolerance` times what it was at
    first; 0 means never.
    """
    weights = np.zeros_like(layer.weights, dtype=np.float64)
    losses = [loss(layer, weights)]
    chosen: list[int] = []
    while len(chosen) < min(kept, int(channels.max()) + 1):
        squares = np.square(gradient(layer, weights)).sum(axis=0)
        scores = np.bincount(channels, weights=squares)
        scores[chosen] = -1
        number = min(together, kept - len(chosen), len(scores) - len(chosen))
        chosen += [int(i) for i in np.argsort(-scores, kind="stable")[:number]]
        weights = refit(layer, np.flatnonzero(np.isin(channels, chosen)))
        losses.append(loss(layer, weights))
        if tolerance and losses[-2] - losses[-1] <= tolerance * losses[0]:
            break
    return Selection(chosen, losses, weights)


def _energy(layer: LabelledLayer) -> float:
    """Return |W X|^2."""
    return float(np.sum((layer.weights @ layer.gram) * layer.weights))


def _logits(layer: LabelledLayer, weights: np.ndarray) -> np.ndarray:
    return np.asarray(layer.pooled @ (layer.head.weights @ weights).T + layer.head.bias)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean cross-entropy and its gradient, (samples, classes)."""
    each = np.arange(len(labels))
    slope = softmax(logits, axis=1)
    slope[each, labels] -= 1
    entropy = -float(log_softmax(logits, axis=1)[each, labels].mean())
    return entropy, np.asarray(slope / len(labels))
