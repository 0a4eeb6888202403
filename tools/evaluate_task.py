"""Score models on the zoo's labelled tasks."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tilewright.errors import UnknownName, UnusableInput
from tilewright.protocol import Executable, Feeds, Report, silent
from tilewright.tools.load_artifact import load_any
from tilewright.tools.read_model import Source

if TYPE_CHECKING:
    from tilewright.frontends.zoo import Score


def evaluate_task(
    model: str,
    task: str,
    *,
    threads: int | None = None,
    device: str | None = None,
    limit: int | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Return the score of an artifact, .onnx file or zoo model on a task."""
    from tilewright.frontends import zoo

    if task not in zoo.TASKS:
        raise UnknownName("task", task, zoo.TASKS)
    if limit is not None and limit < 1:
        raise UnusableInput(f"--limit {limit}: it is a number of samples, at least 1.")
    loaded = load_any(model, threads, device)

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        try:
            return loaded(feeds)
        except UnusableInput as error:
            fed = ", ".join(f'"{name}" {list(value.shape)}' for name, value in feeds.items())
            owners = [f"zoo:{n}" for n, known in zoo.MODELS.items() if task in known.tasks]
            raise UnusableInput(
                f"eval: {model} does not take what the task {task} feeds, which is {fed}. "
                f"Give {' or '.join(owners)}, or what was compiled from it."
            ) from error

    score = zoo.evaluate(task, run, limit=limit, report=report)
    return score_json(score)


def score_json(score: "Score") -> dict[str, Any]:
    """Return what `tilewright eval --json` prints."""
    return {
        "task": score.task,
        "metric": score.metric,
        "value": score.value,
        "n": score.n,
        "extra": dict(score.extra),
    }


def task_scores(source: Source, compiled: Executable, report: Report) -> list[dict[str, Any]]:
    """Score the original and the compiled model of the zoo on each of its tasks."""
    from tilewright.frontends import zoo

    assert source.zoo is not None, "only models of the zoo have tasks"
    scores = []
    for task in zoo.MODELS[source.zoo].tasks:
        report(f"{task}: the original model")
        dense = score_json(zoo.evaluate(task, load_any(str(source.file)), report=report))
        report(f"{task}: the compiled model")
        value = score_json(zoo.evaluate(task, compiled, report=report))["value"]
        scores.append({**dense, "dense": dense["value"], "value": value})
    return scores
