"""The classifier head of the task wordnet-lexname, fitted once on the dense embeddings."""

import numpy as np
from numpy.typing import NDArray

from tilewright.cache import Report, cache_folder, write_aside
from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.run_dense import open_model
from tilewright.frontends.zoo.scores import fit_logistic
from tilewright.frontends.zoo.tokens import sentence_feeds
from tilewright.frontends.zoo.wordnet import labelled_definitions

# A higher number makes older fits stale.
RECIPE = 1
BATCH = 32
C = 10.0


def lexname_head(report: Report) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (384, 24) and bias (24,), from the cache if they were fitted before."""
    path = cache_folder() / "heads" / f"wordnet-lexname-{RECIPE}.npz"
    if not path.exists():
        report("fitting the head of wordnet-lexname on 1,920 dense embeddings")
        weights, bias = fit_head(report)
        with write_aside(path) as aside:
            np.savez(aside, weights=weights, bias=bias)
    with np.load(path) as stored:
        return stored["weights"], stored["bias"]


def fit_head(report: Report) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Embed the training definitions with the dense model and fit the regression."""
    definitions = labelled_definitions()
    train = len(definitions.texts) * 2 // 3
    feeds = sentence_feeds(definitions.texts[:train])
    run = open_model(get("minilm", report))
    parts = [
        run({k: v[i : i + BATCH] for k, v in feeds.items()})["embedding"]
        for i in range(0, train, BATCH)
    ]
    labels = np.array(definitions.labels[:train])
    return fit_logistic(np.concatenate(parts), labels, len(definitions.classes), C)
