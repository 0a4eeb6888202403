"""The arithmetic of the evaluation tasks, on plain arrays and texts."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.frontends.zoo.optional import optional

Floats = NDArray[np.floating]


def rank_auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return the probability that a positive scores above a negative; ties count one half.

    Both are flat and of one length. NaN when there are no positives or no negatives.
    Mann & Whitney (1947).
    """
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    # The mean of the 1-based ranks that equal scores occupy together.
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    n = int(positive.sum())
    pairs = n * (len(positive) - n)
    if pairs == 0:
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / pairs)


def edit_distance(a: str, b: str) -> int:
    """Return how few insertions, deletions and replacements turn `a` into `b`.

    Levenshtein (1966).
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def ctc_text(scores: Floats, characters: Sequence[str]) -> str:
    """Return the text of (time, classes) scores: best class each step, repeats merged.

    Class 0 is the blank. Graves et al., "Connectionist temporal classification" (2006).
    """
    best = scores.argmax(-1)
    starts = np.concatenate([[True], best[1:] != best[:-1]])
    return "".join(characters[c] for c in best[starts & (best != 0)])


def negative_log_likelihood(logits: Floats, targets: NDArray[np.integer]) -> float:
    """Return the summed -log softmax(logits)[target], in nats; logits are (n, classes)."""
    # Only maxima and targets go to float64: a copy of 256 x 49,152 logits costs 100 MB.
    top = logits.max(-1, keepdims=True)
    total = np.exp(logits - top).sum(-1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return float((np.log(total) + top[:, 0] - chosen).sum())


def fit_logistic(
    x: Floats, y: NDArray[np.integer], classes: int, c: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (features, classes) and bias (classes,) of multinomial regression.

    They minimise c * sum(-log p(y | x)) + |weights|^2 / 2; the bias is free. `x` is
    (samples, features). The problem is convex, so the answer does not hang on the start.
    """
    minimize = optional("scipy.optimize", "fitting the classifier head").minimize
    x = x.astype(np.float64)
    features = x.shape[1]
    wanted = np.eye(classes)[y]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = flat.reshape(features + 1, classes)
        logits = x @ table[:-1] + table[-1]
        logits -= logits.max(1, keepdims=True)
        share = np.exp(logits)
        total = share.sum(1, keepdims=True)
        error = c * (share / total - wanted)
        value = c * (np.log(total).sum() - (logits * wanted).sum())
        value += (table[:-1] ** 2).sum() / 2
        return value, np.vstack([x.T @ error + table[:-1], error.sum(0)]).ravel()

    start = np.zeros((features + 1) * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    table = found.x.reshape(features + 1, classes)
    return table[:-1], table[-1]
