"""How important each entry is: a unit, a channel, a column. Higher is more important.

Everything is computed from arrays that the caller gathers; nothing here runs a network.
"""

from itertools import combinations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

_PROJECTIONS = 128  # on which clouds of more than one feature are compared


def filter_norms(weights: np.ndarray) -> np.ndarray:
    """Return the L2 norm of each output's weights. `weights` is (outputs, ...).

    The criterion of PSViT and PrimeSVT (Putra et al., 2026), after Li et al., "Pruning filters
    for efficient ConvNets" (2017).
    """
    return np.asarray(np.linalg.norm(_rows(weights), axis=1))


def taylor(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return what the loss changes by without an output's weights, to first order.

    `weights` is (outputs, ...), `gradients` (batches, outputs, ...): those of the loss, batch
    by batch. Result: the mean over batches of |sum(w g)|. It is the first-order importance of a
    group of weights of Molchanov et al., "Importance estimation for neural network pruning"
    (2019), with the absolute value in place of the square. For single weights pass them as
    outputs of one weight each.
    """
    return np.asarray(np.abs(_changes(weights, gradients)).mean(axis=0))


def reconstruction(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return FAIR-Pruner's R-score, |sum over batches of sum(w g)|.

    Arguments are those of `taylor`; a bias takes part as one more weight of each output. Signs
    cancel between batches, as in the authors' code (Lin et al., "FAIR-Pruner", 2025).
    """
    return np.asarray(np.abs(_changes(weights, gradients).sum(axis=0)))


def leverage(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Return the ridge leverage scores, the diagonal of C (C + ridge I)^-1.

    `gram` is C = X X^T, (entries, entries), `ridge` positive, in C's units. A score is 1 where
    no other entry can stand in for this one, and 0 where it never fires; they sum to the
    effective dimension. Below about 1e-8 of C's largest eigenvalue `ridge` drowns in rounding.
    Alaoui & Mahoney (2015), used for hidden features by Chiang et al., "UniQL" (2025).
    """
    wide = gram.astype(np.float64)
    factor = cho_factor(wide + ridge * np.eye(len(wide)), lower=True)
    return np.diag(cho_solve(factor, wide)).copy()


def alikeness(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean cosine of what goes into a block and what comes out.

    Both are (positions, features). Near 1 the block does little. UniQL's code looks at the last
    token of a sequence only; the caller chooses the positions.
    """
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(((before * after).sum(axis=1) / np.maximum(lengths, 1e-30)).mean())


def utilization(activations: np.ndarray, classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return FAIR-Pruner's U-score: how far apart two classes are at most in a unit's output.

    `activations` is (samples, units) or (samples, units, features), such as the pixels of a
    channel; `classes` (samples,) are labels, or the dense network's answers. For each pair of
    classes the Wasserstein-1 distance is taken between their samples, with several features
    its mean over 128 random directions, which `seed` chooses. Result: (units,).
    Lin et al., "FAIR-Pruner" (2025). Where classes have different numbers of samples ours is
    the exact distance; their code interpolates quantiles.
    """
    wide = activations.astype(np.float64)
    groups = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    if wide.ndim == 2:
        return _farthest([wide[group, :, None] for group in groups])
    features = wide.shape[2]
    directions = np.random.default_rng(seed).normal(size=(features, _PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    # Unit by unit: all of them on all directions at once may not fit into memory.
    return np.concatenate(
        [
            _farthest([wide[group, unit, None] @ directions for group in groups])
            for unit in range(wide.shape[1])
        ]
    )


def wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Wasserstein-1 distances between the samples in `x` and those in `y`.

    `x` is (n, ...), `y` (m, ...), both sorted along the first axis; the result has the shape of
    the others. It is the area between two quantile functions, of steps of 1 / n and 1 / m.
    """
    n, m = len(x), len(y)
    # In units of 1 / (n m), where every step begins at a whole number.
    begins = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(begins, append=n * m) / (n * m)
    return np.asarray(np.tensordot(widths, np.abs(x[begins // m] - y[begins // n]), axes=1))


def _farthest(groups: list[np.ndarray]) -> np.ndarray:
    """Return the largest mean distance of two groups, each (samples, units, directions)."""
    ordered = [np.sort(group, axis=0) for group in groups]
    pairs = [wasserstein(x, y).mean(axis=-1) for x, y in combinations(ordered, 2)]
    return np.asarray(np.max([np.zeros(groups[0].shape[1]), *pairs], axis=0))


def _changes(weights: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return sum(w g), (batches, outputs)."""
    rows = gradients.reshape(*gradients.shape[:2], -1).astype(np.float64)
    return np.asarray(np.einsum("oi,boi->bo", _rows(weights), rows))


def _rows(weights: np.ndarray) -> np.ndarray:
    return weights.reshape(len(weights), -1).astype(np.float64)
