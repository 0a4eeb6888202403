"""Labelled evaluation tasks: what they measure, and the score of any way to run the model.

`run` executes one feed of batch 1 in the model's default dims. The inputs and labels are fixed,
so two scores of one task compare like with like.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tilewright.cache import Report, quiet
from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.feeds import (
    classifier_input,
    ocr_characters,
    photo_crops,
    saliency_input,
)
from tilewright.frontends.zoo.lexname_head import lexname_head
from tilewright.frontends.zoo.run_dense import Run, open_model
from tilewright.frontends.zoo.scores import (
    ctc_text,
    edit_distance,
    negative_log_likelihood,
    rank_auc,
)
from tilewright.frontends.zoo.stamps import labelled_composites, labelled_stamps, on_white
from tilewright.frontends.zoo.text_images import labelled_lines
from tilewright.frontends.zoo.tokens import sentence_feeds, text_windows
from tilewright.frontends.zoo.wordnet import labelled_definitions

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """One labelled task of one model."""

    name: str
    model: str
    metric: str
    about: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Score:
    """The value of a task's metric over `n` samples, and other figures from the same run."""

    task: str
    metric: str
    value: float
    n: int
    extra: Mapping[str, float] = field(default_factory=dict)


# The metric, the number of samples, other figures.
Figures = tuple[float, int, dict[str, float]]
Evaluator = Callable[[Run, int | None, Report], Figures]


def evaluate(task: str, run: Run, limit: int | None = None, report: Report = quiet) -> Score:
    """Return the score that `run` reaches on `task`, over its first `limit` samples or all.

    Raises UnknownName, and UnusableInput when the data cannot be had.
    """
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    if limit is not None and limit < 1:
        raise UnusableInput(
            f"zoo: {task} was asked for with limit {limit}, which leaves nothing to score. "
            f"Give 1 or more, or none for all samples."
        )
    value, n, extra = EVALUATORS[task](run, limit, report)
    return Score(task, TASKS[task].metric, value, n, extra)


def ocr_exact(run: Run, limit: int | None, report: Report) -> Figures:
    """Share of lines read without any mistake; extra: character error rate."""
    characters = ocr_characters(report)
    exact = wrong = length = n = 0
    for x, text in told(labelled_lines(), limit, "line", report):
        read = ctc_text(run({"x": x})["fetch_name_0"][0], characters)
        exact += read == text
        wrong += edit_distance(read, text)
        length += len(text)
        n += 1
    return exact / n, n, {"cer": wrong / length}


def wordnet_lexname(run: Run, limit: int | None, report: Report) -> Figures:
    """Share of definitions put into the right one of 24 classes by the dense model's head."""
    weights, bias = lexname_head(report)
    definitions = labelled_definitions()
    train = len(definitions.texts) * 2 // 3
    feeds = sentence_feeds(definitions.texts[train:])
    labels = definitions.labels[train:]
    right = n = 0
    for i, label in enumerate(told(labels, limit, "definition", report)):
        embedding = run({k: v[i : i + 1] for k, v in feeds.items()})["embedding"][0]
        right += int((embedding @ weights + bias).argmax()) == label
        n += 1
    return right / n, n, {}


def saliency_auc(run: Run, limit: int | None, report: Report) -> Figures:
    """Mean over images of the AUC of pixel importance against the known mask; extra: median."""
    areas = []
    for pixels, mask in told(labelled_composites(), limit, "image", report):
        found = run({"input_image": saliency_input(pixels)})["output_importance"][0, 0]
        # Every fourth pixel: neighbours say the same, and ranking all would be slower.
        areas.append(rank_auc(mask[::4, ::4].ravel(), found[::4, ::4].ravel()))
    return float(np.mean(areas)), len(areas), {"median": float(np.median(areas))}


def stamps_top1(run: Run, limit: int | None, report: Report) -> Figures:
    """Share of stamps whose first answer is right; extra: top 5, agreement with dense.

    The agreement is over the stamps and as many photo crops: it resolves more than 151 labels.
    """
    dense = open_model(get("efficientnet-lite0", report))
    top1 = top5 = agreed = n = 0
    for stamp in told(labelled_stamps(), limit, "stamp", report):
        x = classifier_input(on_white(stamp, 224))
        order = np.argsort(-run({"input": x})["logits"][0], kind="stable")
        top1 += int(order[0]) in stamp.classes
        top5 += any(int(c) in stamp.classes for c in order[:5])
        agreed += int(order[0]) == int(dense({"input": x})["logits"][0].argmax())
        n += 1
    for x in told(photo_crops(), n, "photo crop", report):
        mine, its = (f({"input": x})["logits"][0].argmax() for f in (run, dense))
        agreed += int(mine) == int(its)
    return top1 / n, n, {"top5": top5 / n, "agreement": agreed / (2 * n)}


def perplexity(run: Run, limit: int | None, report: Report) -> Figures:
    """Perplexity of WordNet glosses in windows of 256 tokens; extra: of Python's help texts.

    The help texts vary with the Python version, so only the glosses compare across machines.
    """
    glosses, n = text_perplexity(run, text_windows("glosses"), limit, report)
    python_docs, _ = text_perplexity(run, text_windows("python_docs"), limit, report)
    return glosses, n, {"python_docs": python_docs}


def text_perplexity(
    run: Run, windows: NDArray[np.int64], limit: int | None, report: Report
) -> tuple[float, int]:
    """Return exp of the mean negative log-likelihood of each next token, and the windows."""
    total = 0.0
    tokens = n = 0
    for window in told(windows, limit, "window", report):
        logits: NDArray[Any] = run({"input_ids": window[None]})["logits"]
        total += negative_log_likelihood(logits[0, :-1], window[1:])
        tokens += len(window) - 1
        n += 1
    return float(np.exp(total / tokens)), n


def told(samples: Iterable[T], limit: int | None, what: str, report: Report) -> Iterable[T]:
    """Yield the first `limit` samples and report every 50th."""
    for i, sample in enumerate(islice(samples, limit)):
        if i and i % 50 == 0:
            report(f"{i} {what}s done")
        yield sample


EVALUATORS: dict[str, Evaluator] = {
    "ocr-exact": ocr_exact,
    "wordnet-lexname": wordnet_lexname,
    "saliency-auc": saliency_auc,
    "stamps-top1": stamps_top1,
    "perplexity": perplexity,
}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ocr-exact", "ppocr-rec", "exact", "300 rendered lines of English words"),
        Task("wordnet-lexname", "minilm", "accuracy", "960 definitions into 24 classes"),
        Task("saliency-auc", "vit-saliency", "auc", "51 things pasted onto photos"),
        Task("stamps-top1", "efficientnet-lite0", "top1", "151 photos of single things"),
        Task("perplexity", "smollm2", "perplexity", "32 windows of 256 tokens", False),
    )
}
