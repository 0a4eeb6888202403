"""The commands, once their arguments are parsed. Each prints through its console."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import artifact, oracle
from tilewright.calibration import Calibration
from tilewright.compare import FLOAT32_SLACK, Allowed, compare, worst_of
from tilewright.errors import CheckFailed, UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.protocol import HOST, Context, Feeds
from tilewright.reproduce import read_reproduction
from tilewright.sizes import Sizes
from tilewright.tools.compile_model import compile_model
from tilewright.tools.console import Console
from tilewright.tools.count_threads import count_threads
from tilewright.tools.engines import check_engine
from tilewright.tools.evaluate_task import evaluate_task
from tilewright.tools.find_feeds import first_feeds, samples_of, sizes_of
from tilewright.tools.find_target import find_backend, parse_pipeline
from tilewright.tools.give_device import devices_of
from tilewright.tools.job import Job
from tilewright.tools.load_artifact import inputs_of, load_any, load_standard
from tilewright.tools.measure_engines import OURS, measure_engines
from tilewright.tools.read_model import model_file
from tilewright.tools.replace_file import replacing
from tilewright.tools.search_job import Search
from tilewright.tools.search_plan import search_plan
from tilewright.tools.verify_artifact import AGREES, allowed_error, as_json
from tilewright.tools.write_report import (
    summary_rows,
    told_agreement,
    told_answers,
    told_verified,
)


def run_compile(job: Job, console: Console) -> None:
    """Compile, then print what it brought."""
    with console.working():
        manifest = compile_model(job, console.report)
    console.table(("", "dense", "compiled", ""), summary_rows(manifest))
    if "prune-" in manifest["pipeline"] and not manifest["plan"]["levels"]:
        console.text(f"Nothing was pruned: {_why_not(manifest)}.")
    if answers := manifest["answers"]:
        console.text(told_answers(answers))
    console.text(told_verified(manifest["verified"]))
    if manifest["sizes"] is not None:
        console.text(_told_sizes(Sizes.from_json(manifest["sizes"])))
    if islands := manifest["islands"]:
        console.text(
            f"Run by onnxruntime: {_counted(len(islands), 'node')}; report.html says which "
            "and why."
        )
    folder = shlex.quote(manifest["artifact"])
    bench = f"; tilewright bench {folder}" if manifest["device"] == HOST else ""
    console.text(f"Written: {folder} (see {folder}/report.html{bench})")
    console.result(manifest)


def run_search(search: Search, console: Console) -> None:
    """Search a plan and print it. Raises CheckFailed where what is asked cannot be had."""
    with console.working():
        found = search_plan(search, console.report)
    latency, dense = found["latency"], found["latency"]["dense"]
    columns = ("layer", "tile", "sparsity", "dense ms", "ms", "error")
    console.table(columns, [_layer_row(row) for row in found["layers"]])
    threads = f" ({_counted(latency['threads'], 'thread')})" if latency["threads"] else ""
    console.text(
        f"latency, median{threads}: dense "
        f"{dense['median_ms']:.3f} ms, now {latency['median_ms']:.3f} ms "
        f"(estimated {found['estimated_latency_ms']:.3f} ms)"
    )
    console.text(told_agreement(found, _counted(found["judged_samples"], "sample")))
    for score in found["accuracy"]:
        console.text(
            f"{score['task']}, {score['metric']} (n={score['n']}): dense "
            f"{score['dense']:.4g}, now {score['value']:.4g}"
        )
    console.text(f"Written: {shlex.quote(found['written'])} (compile --plan takes it)")
    console.result(found)
    if not found["met"]:
        raise CheckFailed(_not_met(search, found))


def _layer_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["tile"],
        f"{row['sparsity']:.0%}",
        f"{row['dense_ms']:.3f}",
        f"{row['ms']:.3f}",
        f"{row['error']:.2g}",
    )


def _not_met(search: Search, found: Mapping[str, Any]) -> str:
    """Say what could not be had, and what there is instead."""
    budget, floor = search.latency_budget_ms, search.accuracy_floor
    asked = [f"--latency-budget {budget:g}ms"] if budget is not None else []
    asked += [f"--accuracy-floor {floor:g}"] if floor is not None else []
    kind = "the fastest that was measured"
    if floor is not None:
        below = found["agreement"] < floor
        kind = "the model without pruning" if below else "the fastest that holds the floor"
    return (
        f"search: {search.model} with {' and '.join(asked)} cannot be had on this device: "
        f"{kind} takes {found['latency']['median_ms']:.3f} ms, and its answers agree to "
        f"{found['agreement']:.4f}. Its plan is in {found['written']}. Ask for less."
    )


def _told_sizes(sizes: Sizes) -> str:
    """Say which sizes an artifact takes."""
    told = []
    for name in sizes.choices[0]:
        compiled = ", ".join(str(n) for n in dict.fromkeys(c[name] for c in sizes.choices))
        between = "and any below, padded" if name in sizes.padded else "and no other"
        told.append(f"{name} {compiled} {between}")
    mask = f"; what {sizes.mask} leaves out at the end is not computed" if sizes.mask else ""
    return f"Sizes: {'; '.join(told)}{mask}."


def _why_not(manifest: Mapping[str, Any]) -> str:
    """Say in short why no layer was pruned."""
    notes = [note for note in manifest["notes"] if note["pass"].startswith("prune-")]
    if not notes:
        if manifest["plan"]["levels"] or manifest["layers"]:
            return "no layer was to lose anything"
        return "the model has no layer with float weights of its own"
    # Most layers say what it is about: in a quantized model the first and the last may not.
    ((reason, _),) = Counter(note["reason"] for note in notes).most_common(1)
    node = next(note["node"] for note in notes if note["reason"] == reason)
    rest = len(notes) - 1
    return f"{node}: {reason}" + (
        f"; report.html lists {_counted(rest, 'more layer')}" if rest else ""
    )


def run_artifact(
    model: str,
    data: Path,
    output: Path | None,
    threads: int | None,
    device: str | None,
    console: Console,
) -> None:
    """Run an artifact on every sample of a file; write or describe the outputs."""
    place = contextlib.nullcontext() if output is None else replacing(output)
    with console.working(), place as file:
        samples = samples_of(data, model)
        run = load_any(model, count_threads(threads, console.report), device)
        results = [run(feeds) for feeds in samples.feeds()]
        outputs = {name: _stacked([r[name] for r in results]) for name in results[0]}
        if file is not None:
            with file.open("wb") as stream:
                np.savez(stream, **outputs)  # type: ignore[arg-type]
    rows = [
        (name, "x".join(map(str, values.shape)), values.dtype.name, *_range(values))
        for name, values in outputs.items()
    ]
    console.table(("output", "shape", "dtype", "min", "max"), rows)
    console.result(
        {
            "samples": samples.samples,
            "outputs": {
                n: {"shape": v.shape, "dtype": v.dtype.name} for n, v in outputs.items()
            },
            "written": None if output is None else str(output),
        }
    )


def run_verify(
    first: str,
    second: str,
    data: Path,
    threads: int | None,
    device: str | None,
    console: Console,
) -> None:
    """Compare two models on the samples of a file. Raises CheckFailed where they disagree.

    `device` is for the artifacts that run beside this machine. Raises UnusableInput for none.
    """
    with console.working():
        _check_same_inputs(first, second)
        samples = samples_of(data, first)
        threads = count_threads(threads, console.report)
        a, b = (
            load_standard(model, threads, place)
            for model, place in zip(
                (first, second), devices_of((first, second), device), strict=True
            )
        )
        allowed = _allowed((first, second), samples)
        differences = compare((a(feeds), b(feeds)) for feeds in samples.feeds())
    worst = worst_of(differences, allowed)
    agree = allowed.excess(worst) <= 1
    summary = f"{worst}, on {_counted(samples.samples, 'sample')}"
    console.result(
        {
            **as_json(worst),
            "agree": agree,
            "samples": samples.samples,
        }
    )
    if not agree:
        raise CheckFailed(
            f"verify: {first} and {second} disagree: {summary}; {allowed.told(worst)} is "
            "allowed."
        )
    console.text(f"agree: {summary}")


def _check_same_inputs(first: str, second: str) -> None:
    taken = {m: sorted(str(tensor.name) for tensor in inputs_of(m)) for m in (first, second)}
    if taken[first] != taken[second]:
        raise UnusableInput(
            f"verify: {first} has the inputs {taken[first]}, and {second} {taken[second]}. "
            "Compare two forms of the same model."
        )


def _allowed(models: Sequence[str], samples: Calibration) -> Allowed:
    """Return how far answers may be apart: as one of the models rounds, if one does."""
    slack = max(map(_slack, models))
    for model in models:
        feeds, file = samples.feeds(), model_file(model)[0]
        if Path(model).is_dir():
            file = Path(model) / artifact.MODEL
            if (sizes := sizes_of(model)) is not None:
                feeds = (sizes.resized(feed, sizes.choices[0]) for feed in feeds)
        allowed = allowed_error(file, feeds, slack)
        if allowed != AGREES:
            return allowed
    return AGREES


def _slack(model: str) -> float:
    """Return that of what runs a model: of onnxruntime, where it is no artifact."""
    if not Path(model).is_dir():
        return FLOAT32_SLACK
    return find_backend(artifact.read(Path(model))["backend"]).slack


def run_bench(
    folder: str,
    against: Sequence[str],
    original: Path | None,
    data: Path | None,
    dims: Mapping[str, int],
    threads: int | None,
    rounds: int,
    console: Console,
) -> None:
    """Time an artifact against other engines on the same model and inputs."""
    for engine in against:
        check_engine(engine)
    if rounds < 1:
        raise UnusableInput(f"--rounds {rounds}: at least 1 is needed.")
    with console.working():
        device = artifact.read(Path(folder)).get("device", HOST)
        if device != HOST:
            raise UnusableInput(
                f'bench {folder}: it runs on "{device}", and engines on this machine are no '
                "match for that. Bench an artifact for cpu."
            )
        model = Path(folder) / artifact.MODEL
        models = {OURS: Path(folder)} | dict.fromkeys(against, original or model)
        feeds = first_feeds(folder, data, dims)
        if original is None:
            _check_first_size(folder, feeds)
        contest = measure_engines(
            models,
            feeds,
            count_threads(threads, console.report) or oracle.cores(),
            rounds=rounds,
            probed=True,
            report=console.report,
        )
    rows = contest.as_json()["rows"]
    console.table(
        ("engine", "min ms", "median ms", "spread", "threads", "ratio"),
        [
            (
                f"{row['engine']} {row['version']}",
                f"{row['min_ms']:.3f}",
                f"{row['median_ms']:.3f}",
                f"{row['spread']:.0%}",
                str(row["threads"]),
                f"{contest.ratio(row['engine']):.2f}",
            )
            for row in rows
        ],
    )
    console.result(contest.as_json())


def run_eval(
    model: str,
    task: str,
    threads: int | None,
    device: str | None,
    limit: int | None,
    console: Console,
) -> None:
    """Score a model on a labelled task."""
    with console.working():
        score = evaluate_task(
            model, task, threads=threads, device=device, limit=limit, report=console.report
        )
    extra = ", ".join(f"{name} {value:.4g}" for name, value in score["extra"].items())
    console.text(
        f"{task}: {score['metric']} {score['value']:.4g} (n={score['n']})"
        + (f"; {extra}" if extra else "")
    )
    console.result(score)


def run_zoo_list(console: Console) -> None:
    """List the models of the zoo."""
    from tilewright.frontends import zoo

    models: list[dict[str, Any]] = [
        {
            "name": model.name,
            "licence": model.licence,
            "source": model.source,
            "about": model.about,
            "dims": dict(model.dims),
            "tasks": list(model.tasks),
        }
        for model in zoo.MODELS.values()
    ]
    console.table(
        ("name", "licence", "source", "tasks", "about"),
        [
            (m["name"], m["licence"], m["source"], ", ".join(m["tasks"]), m["about"])
            for m in models
        ],
    )
    console.result({"models": models})


def run_zoo_get(name: str, console: Console) -> None:
    """Fetch or build a model of the zoo and print where it is."""
    from tilewright.frontends import zoo

    with console.working():
        path = zoo.get(name, report=console.report)
    console.text(str(path))
    console.result({"name": name, "path": str(path)})


def run_reproduce(folder: Path, console: Console) -> None:
    """Rerun a failing pass from the folder that it left. It fails again, or is mended."""
    with console.working():
        stored = read_reproduction(folder)
        graph = read_onnx(stored.model)
        calibration = (
            None
            if stored.arrays is None
            else Calibration.from_arrays(stored.arrays, graph.inputs)
        )
        context = Context(
            stored.target,
            calibration=calibration,
            seed=stored.seed,
            plan=stored.plan,
            precision=stored.precision,
            report=console.report,
            dense=None if stored.dense is None else read_onnx(stored.dense),
        )
        pipeline = parse_pipeline(stored.pipeline)
        run = pipeline.run(graph, context, reproductions=None)
    console.table(
        ("pass", "nodes", "parameters", "zeros", "seconds", "changed"), run.trace.rows()
    )
    console.text("It ran to its end: the fault is not there any more.")
    console.result({"pipeline": str(pipeline), "trace": run.trace.as_json()})


def _check_first_size(folder: str, feeds: Feeds) -> None:
    """Raise UnusableInput where the artifact takes inputs and its model.onnx does not."""
    sizes = sizes_of(folder)
    if sizes is None:
        return
    sizes.compiled_for(feeds)  # what is refused needs no other engine
    if sizes.sizes_of(feeds) != sizes.choices[0]:
        first = ", ".join(f"{name}={size}" for name, size in sizes.choices[0].items())
        raise UnusableInput(
            f"Other engines run the artifact's model.onnx, which has {first}; these inputs "
            "have other sizes. Give the original, whose dimensions are open, with --model."
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _stacked(values: Sequence[np.ndarray]) -> np.ndarray:
    """Join the outputs of all samples along a batch axis of one, or along a new axis."""
    has_batch = values[0].ndim > 0 and all(v.shape[0] == 1 for v in values)
    return np.concatenate(values) if has_batch else np.stack(values)


def _range(values: np.ndarray) -> tuple[str, str]:
    if not values.size or values.dtype.kind not in "fiu":
        return "", ""
    return f"{values.min():.5g}", f"{values.max():.5g}"
