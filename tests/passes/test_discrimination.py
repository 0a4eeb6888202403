"""Channels that tell the classes apart are kept."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tilewright.passes.prune.discrimination import (
    Head,
    LabelledLayer,
    gradient,
    loss,
    refit,
    select,
    train_head,
)
from tilewright.threads import one_blas_thread


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, on a busy machine by far."""
    with one_blas_thread():
        yield


def planted(
    seed: int, informative: int = 10, others: int = 10, samples: int = 1000, energy: float = 3.0
) -> LabelledLayer:
    """Return a layer of which the first channels tell the classes, the others are louder.

    The others vary from position to position; the head sees the average over 16.
    """
    r = np.random.default_rng(seed)
    labels = r.integers(4, size=samples)
    patterns = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    means = 0.3 * patterns[np.arange(informative) % 3].T[labels]
    x = r.normal(size=(samples, 16, informative + others))
    x[:, :, :informative] += (means + 0.6 * r.normal(size=means.shape))[:, None]
    x[:, :, informative:] *= energy
    weights = r.normal(size=(16, informative + others))
    columns, pooled = x.reshape(-1, x.shape[2]), x.mean(axis=1)
    head = train_head(pooled @ weights.T, labels)
    return LabelledLayer(weights, columns.T @ columns, pooled, labels, head)


def each_its_own(layer: LabelledLayer) -> np.ndarray:
    return np.arange(layer.weights.shape[1])


def test_the_gradient_is_that_of_the_loss() -> None:
    layer = planted(0, 3, 3, samples=50)
    weights = np.random.default_rng(1).normal(size=layer.weights.shape)
    step = 1e-5
    numeric = [
        (loss(layer, weights + h) - loss(layer, weights - h)) / (2 * step)
        for h in step * np.eye(weights.size).reshape(-1, *weights.shape)
    ]
    found = gradient(layer, weights)
    np.testing.assert_allclose(found.ravel(), numeric, atol=1e-6 * np.abs(found).max())


def test_the_dense_weights_miss_nothing_and_the_head_knows_most_labels() -> None:
    layer = planted(0)
    assert loss(layer._replace(balance=0), layer.weights) == 0
    logits = layer.pooled @ layer.weights.T @ layer.head.weights.T + layer.head.bias
    assert (logits.argmax(axis=1) == layer.labels).mean() > 0.6  # a quarter would be chance


def test_a_head_is_trained_to_where_its_gradient_vanishes() -> None:
    layer = planted(1, 3, 3, samples=200)
    features = layer.pooled @ layer.weights.T
    head = train_head(features, layer.labels, ridge=0.1)
    logits = features @ head.weights.T + head.bias
    slope = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope[np.arange(200), layer.labels] -= 1
    # L-BFGS stops once no part of the gradient is above 1e-5, or steps gain next to nothing.
    np.testing.assert_allclose(slope.T @ features / 200 + 0.1 * head.weights, 0, atol=1e-4)
    np.testing.assert_allclose(slope.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("balance", [0.0, 1.0, 30.0])
def test_refitted_weights_cannot_be_improved_where_they_may_change(balance: float) -> None:
    layer = planted(2, 4, 4, samples=100)._replace(balance=balance)
    inputs = np.array([0, 2, 5, 6])
    weights = refit(layer, inputs)
    assert (np.delete(weights, inputs, axis=1) == 0).all()
    # The loss is convex: no gradient, no better weights. L-BFGS stops at 1e-8 in its
    # coordinates.
    slope = np.abs(gradient(layer, weights)[:, inputs]).max()
    assert slope <= 1e-6 * np.abs(gradient(layer, 0 * weights)).max()


@pytest.mark.parametrize("channels", range(2, 9))
def test_without_labels_it_is_orthogonal_matching_pursuit(channels: int) -> None:
    r = np.random.default_rng(channels)
    x = r.normal(size=(channels, channels)) @ r.normal(size=(channels, 60))
    weights = r.normal(size=(5, channels))
    nothing = Head(np.zeros((2, 5)), np.zeros(2))
    labels = np.zeros(4, dtype=int)
    layer = LabelledLayer(weights, x @ x.T, np.zeros((4, channels)), labels, nothing, balance=0)
    # On the samples themselves: the channel that goes best with what is missing, then all
    # that were chosen are fitted again.
    support: list[int] = []
    missing = weights @ x
    for _ in range(channels):
        norms = [np.linalg.norm(missing @ x[j]) * (j not in support) for j in range(channels)]
        support.append(int(np.argmax(norms)))
        fitted, *_ = np.linalg.lstsq(x[support].T, (weights @ x).T)
        missing = weights @ x - fitted.T @ x[support]
    found = select(layer, np.arange(channels), channels)
    assert found.channels == support
    # With all channels nothing is missing: only rounding, of an ill-conditioned solve.
    np.testing.assert_allclose(found.weights, weights, atol=1e-8)


def test_every_round_lowers_the_loss() -> None:
    layer = planted(3, 5, 5, samples=200)
    losses = select(layer, each_its_own(layer), 10).losses
    assert len(losses) == 11
    assert all(after < before for before, after in pairwise(losses))


def test_informative_channels_are_kept_where_reconstruction_keeps_loud_ones() -> None:
    kept = {0.0: 0, 1.0: 0}
    for seed in range(4):
        layer = planted(seed)
        for balance in kept:
            found = select(layer._replace(balance=balance), each_its_own(layer), 10)
            kept[balance] += sum(channel < 10 for channel in found.channels)
    assert kept[1.0] >= 0.95 * 40
    assert kept[0.0] < 0.7 * 40


def test_channels_that_add_nothing_come_last_and_once() -> None:
    nothing = Head(np.zeros((2, 2)), np.zeros(2))
    weights = np.array([[0.0, 1, 0, 2, 0], [0, 3, 0, 0, 0]])
    labels = np.zeros(3, dtype=int)
    layer = LabelledLayer(weights, np.eye(5), np.zeros((3, 5)), labels, nothing)
    assert select(layer, np.arange(5), 5).channels == [1, 3, 0, 2, 4]


def test_channels_of_several_inputs_stay_together() -> None:
    layer = planted(4, 6, 6, samples=100)
    pairs = np.repeat(np.arange(6), 2)
    found = select(layer, pairs, 2)
    left = np.flatnonzero((found.weights != 0).any(axis=0))
    assert left.tolist() == [i for i in range(12) if pairs[i] in found.channels]


def test_several_may_go_in_one_round() -> None:
    layer = planted(5, 5, 5, samples=100)
    found = select(layer, each_its_own(layer), 7, together=3)
    assert len(set(found.channels)) == 7
    assert len(found.losses) == 1 + 3
    # The first round's are those with the largest gradients at nothing.
    norms = np.linalg.norm(gradient(layer, np.zeros_like(layer.weights)), axis=0)
    assert found.channels[:3] == np.argsort(-norms)[:3].tolist()


def test_it_stops_where_a_round_gains_too_little() -> None:
    layer = planted(6, 5, 5, samples=200)
    whole = select(layer, each_its_own(layer), 10).losses
    gains = -np.diff(whole) / whole[0]
    tolerance = 0.04
    stopped = select(layer, each_its_own(layer), 10, tolerance=tolerance)
    assert stopped.losses == whole[: int(np.argmax(gains <= tolerance)) + 2]
    assert 2 < len(stopped.losses) < len(whole)
