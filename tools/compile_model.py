"""Compile: read, calibrate, run the passes, build, verify, measure, write."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright import artifact, oracle
from tilewright.cache import cache_folder
from tilewright.cost import parameter_bytes, parameter_counts
from tilewright.errors import UnknownName
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Pattern, Tile, parse_layout
from tilewright.measurement import Samples, machine, take_turns, versions
from tilewright.memory import return_freed_memory
from tilewright.pipeline import Pipeline, Run
from tilewright.plan import Level, Plan, Value, channels_of, empty_tiles
from tilewright.protocol import HOST, Build, Context, Executable, Report, silent
from tilewright.random_feeds import random_feeds
from tilewright.sizes import Sizes
from tilewright.target import Target
from tilewright.timings import Tuning
from tilewright.tools.compare_answers import compare_answers
from tilewright.tools.count_threads import count_threads
from tilewright.tools.evaluate_task import task_scores
from tilewright.tools.find_target import find_backend, find_target
from tilewright.tools.job import Job
from tilewright.tools.load_artifact import load_any
from tilewright.tools.measure_engines import OURS, ROUNDS, measure_engines
from tilewright.tools.read_model import Source, read_calibration, read_model
from tilewright.tools.resize_model import Resizing
from tilewright.tools.resolve_pipeline import check_precision, reads_plan, resolve_pipeline
from tilewright.tools.verify_artifact import allowed_error, verify_artifact
from tilewright.tools.verify_sizes import SizesTrial
from tilewright.tools.write_report import write_report
from tilewright.trace import Trace
from tilewright.version import VERSION

_VERIFIED_SAMPLES = 4


def compile_model(job: Job, report: Report = silent) -> dict[str, Any]:
    """Compile a model and return its manifest, with "artifact" and "seconds" beside it.

    Raises UnusableInput before any work where an option or the place of output is of no use;
    PassFailed; CannotLower; CheckFailed where the artifact's answers are not its model's.
    The folder is then as it was before.
    """
    settled = target, _, _, _, threads, device, _ = _settle(job, report)
    stages = _Stages()
    with artifact.writing(job.folder) as folder:
        with stages("read"):
            source = read_model(job.model, job.first_dims, report)
            stages.weight_bytes = source.graph.weight_bytes()
            _check_mask(job, source)
        resizing = _resizing(job, settled, report)
        built = _build(job, settled, source, resizing, folder, stages, report)
        load = partial(find_backend(target.backend).load, folder, threads, device)
        with stages("verify"):
            verified, sizes = _verified(
                job, source, settled, resizing, folder / artifact.MODEL, built, load()
            )
        manifest = {
            **_identity(job, source, settled),
            "device": device,
            **built.figures,
            "verified": verified,
            "sizes": None if sizes is None else sizes.as_json(),
        }
        with stages("estimate"):
            manifest["estimated_cycles"] = (
                _estimate(target, folder, report) if job.estimate else None
            )
        with stages("latency"):
            feeds = built.feeds[0] if sizes is None else sizes.whole(built.feeds[0])
            manifest["latency"] = (
                _latency_here(source, folder, manifest, feeds, threads, report)
                if device == HOST
                else _latency_there(target, folder, feeds, threads, device)
            )
        with stages("evaluate"):
            manifest["accuracy"] = []
            if job.evaluate and source.zoo:
                scored, run = _scored(folder, manifest, load, sizes)
                scores = task_scores(source, run, report)
                manifest["accuracy"] = [{**score, "of": scored} for score in scores]
        Plan(manifest["plan"]["levels"]).write(folder / "plan.json")
        write_report(folder, manifest, built.trace, stages.seconds)
        sealed = artifact.seal(folder, manifest)
    return {**sealed, "artifact": str(job.folder), "seconds": stages.seconds}


def _check_mask(job: Job, source: Source) -> None:
    names = [str(tensor.name) for tensor in source.graph.inputs]
    if job.mask is not None and job.mask not in names:
        raise UnknownName("input for --mask", job.mask, names)


class _Settled(NamedTuple):
    """What is settled before any work: for what, by which passes, and how much where."""

    target: Target
    precision: str
    pipeline: Pipeline
    plan: Plan | None
    threads: int
    device: str
    tuning: Tuning | None


def _settle(job: Job, report: Report) -> _Settled:
    target = find_target(job.target)
    precision = check_precision(target, job.precision)
    device = find_backend(target.backend).find_device(job.device)
    plan = None if job.plan is None else Plan.read(job.plan)
    pipeline = resolve_pipeline(target, job.pipeline, job.sparsity, plan, precision, report)
    report(f"pipeline: {str(pipeline) or 'no passes'}")
    threads = _threads(job, device, report)
    tuning = job.tuning(threads)
    find_backend(target.backend).check(target, device, tuning)
    return _Settled(target, precision, pipeline, plan, threads, device, tuning)


def _threads(job: Job, device: str, report: Report) -> int:
    """Return the threads of this machine; elsewhere those that were asked for, 0 being all."""
    if device != HOST:
        return job.threads or 0
    return count_threads(job.threads, report) or oracle.cores()


class _Built(NamedTuple):
    """What is left of transforming and lowering: no graph, for weights fill the memory."""

    figures: dict[str, Any]
    trace: Trace
    feeds: list[dict[str, np.ndarray]]


class _Stages:
    """Seconds of each stage, as they pass; behind each, memory goes back to the system."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.weight_bytes = 0  # of the model, once it was read
        self._clock = clock

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._clock()
        yield
        return_freed_memory(self.weight_bytes)
        self.seconds[name] = round(self._clock() - start, 3)


def _verified(
    job: Job,
    source: Source,
    settled: _Settled,
    resizing: Resizing | None,
    saved: Path,
    built: "_Built",
    executable: Executable,
) -> tuple[dict[str, Any], Sizes | None]:
    """Compare the artifact with its model.onnx, with the original, and at its other sizes."""
    against: dict[str, Graph | Path] = {"model.onnx": saved}
    if _keeps_outputs(settled.pipeline):
        against["the original"] = source.graph
    slack = find_backend(settled.target.backend).slack
    allowed = allowed_error(saved, built.feeds, slack)
    verified = verify_artifact(against, executable, built.feeds, allowed)
    if resizing is None:
        return verified, None
    trial = SizesTrial(resizing, read_onnx(saved), executable, built.feeds, allowed)
    return verified, trial.outcome(job.mask)


def _resizing(job: Job, settled: _Settled, report: Report) -> Resizing | None:
    """Return what makes the model at further sizes, where some are asked for."""
    if not job.open_dims:
        return None
    return Resizing(
        lambda sizes: read_model(job.model, job.first_dims | dict(sizes), report).graph,
        settled.pipeline,
        Context(settled.target, None, job.seed, settled.plan, settled.precision, report),
        job.open_dims,
    )


def _build(
    job: Job,
    settled: _Settled,
    source: Source,
    resizing: Resizing | None,
    folder: Path,
    stages: _Stages,
    report: Report,
) -> _Built:
    target, precision, pipeline, plan, _, _, tuning = settled
    with stages("calibrate"):
        calibration = read_calibration(source, job.calibration, job.seed, report)
        context = Context(
            target,
            calibration,
            job.seed,
            plan,
            precision,
            report,
            unfinished=cache_folder() / "unfinished",
        )
        feeds = _feeds(source.graph, context)
    with stages("passes"):
        run = pipeline.run(source.graph, context)
        levels = plan.levels if plan else measured_levels(run, pipeline, context)
    answers = None
    if not _keeps_outputs(pipeline):
        with stages("compare"):
            answers = compare_answers(source.graph, run.graph, calibration, report)
    with stages("build"):
        run.graph.save(folder / artifact.MODEL)
        graphs = [run.graph, *(resizing.others(run.graph) if resizing else ())]
        build = find_backend(target.backend).build(graphs, target, folder, report, tuning)
    figures = {**_figures(source.graph, run, build, levels), "answers": answers}
    return _Built(figures, run.trace, feeds)


def _keeps_outputs(pipeline: Pipeline) -> bool:
    return all(step.keeps_outputs for step in pipeline.passes)


def _feeds(graph: Graph, context: Context) -> list[dict[str, np.ndarray]]:
    if context.calibration is not None:
        return list(islice(context.calibration.feeds(), _VERIFIED_SAMPLES))
    return list(random_feeds(graph, _VERIFIED_SAMPLES, context.seed))


def _scored(
    folder: Path,
    manifest: Mapping[str, Any],
    load: Callable[[], Executable],
    sizes: Sizes | None,
) -> tuple[str, Executable]:
    """Return what tasks are scored on, by name: the artifact, or what it agreed with.

    What stands in for a device that is not there would take hours.
    """
    if manifest["latency"] is None:
        return artifact.MODEL, load_any(str(folder / artifact.MODEL))
    return "the artifact", load() if sizes is None else partial(sizes.run, load())


def _identity(job: Job, source: Source, settled: _Settled) -> dict[str, Any]:
    return {
        "tilewright": VERSION,
        "model": job.model if source.zoo else source.file.name,
        "model_sha256": source.sha256,
        "target": settled.target.name,
        "backend": settled.target.backend,
        "precision": settled.precision,
        "pipeline": str(settled.pipeline),
        "seed": job.seed,
        "tune": job.tune,
        "versions": versions(),
    }


def _figures(
    original: Graph, run: Run, build: Build, levels: Mapping[str, Level]
) -> dict[str, Any]:
    total, _ = parameter_counts(original)
    kept, active = parameter_counts(run.graph)
    in_layers = sum(d.shape[0] * d.shape[1] for d in build.layers)
    skipped = sum(round((1 - d.density) * d.shape[0] * d.shape[1]) for d in build.layers)
    return {
        "plan": {"levels": dict(levels)},
        "pruned": sorted(run.pruned),
        "parameters": {"dense": total, "stored": kept - skipped, "active": active},
        "sparsity": {
            "overall": round(1 - active / kept, 6) if kept else 0.0,
            "tiled": round(skipped / in_layers, 6) if in_layers else 0.0,
        },
        "bytes": {
            "dense": parameter_bytes(original),
            "stored": build.stored_bytes,
            "pruned_layers": _pruned_bytes(run, build),
        },
        "layers": [layer._asdict() for layer in build.layers],
        "islands": [note._asdict() for note in build.islands],
        "notes": [
            {"pass": name, **note._asdict()}
            for name, notes in run.notes.items()
            for note in notes
        ],
        "details": dict(build.details),
    }


def _pruned_bytes(run: Run, build: Build) -> dict[str, int]:
    """Return the fp32 bytes of the layers that lost weights, and what is stored for them."""
    pruned = [d for d in build.layers if d.name in run.pruned]
    return {
        "dense": sum(4 * d.shape[0] * d.shape[1] for d in pruned),
        "stored": sum(d.stored_bytes for d in pruned),
    }


def measured_levels(run: Run, pipeline: Pipeline, context: Context) -> dict[str, Level]:
    """Return the plan that prunes again: what was removed, and the share of empty tiles.

    Of each layer it holds the shares of its input channels that are gone, and those of its
    tiles that are empty.
    """
    readers = [step for step in pipeline.passes if reads_plan(step)]
    if not readers:
        return {}
    levels: dict[str, dict[str, Value]] = {
        name: {"channels": channels_of(shares)}
        for step in run.trace.steps
        for name, shares in step.removed.shares.items()
    }
    fixed = [str(vars(step)["tile"]) for step in readers if "tile" in vars(step)]
    if not fixed:
        return dict(levels)
    for layer in linear_layers(run.graph):
        own = context.target.tile_for(layer, context.precision)
        tile = parse_layout(fixed[-1]) if fixed[-1] else own
        gathers = context.target.gathers_rows(layer, context.precision)
        if isinstance(tile, Pattern):
            share = tile.sparsity
        else:
            share = _empty_share(layer, tile, gathers)
        if layer.name in run.pruned and share > 0:
            levels.setdefault(layer.name, {}).update(sparsity=share, tile=str(tile))
    return dict(levels)


def _empty_share(layer: Layer, tile: Tile, gathers: bool) -> float:
    zeros = layer.matrix() == 0
    return float(empty_tiles(zeros, tile, gathers).mean()) if zeros.size else 0.0


def _estimate(target: Target, folder: Path, report: Report) -> dict[str, Any] | None:
    found = find_backend(target.backend).estimate(folder, target, report)
    return None if found is None else {"value": found.cycles, "model": found.model}


def _latency_here(
    source: Source,
    folder: Path,
    manifest: Mapping[str, Any],
    feeds: Mapping[str, np.ndarray],
    threads: int,
    report: Report,
) -> dict[str, Any]:
    # The timing processes load the artifact as a user would, so it is sealed for now.
    artifact.seal(folder, manifest)
    models = {OURS: folder, "onnxruntime": source.file}
    contest = measure_engines(models, feeds, threads, report=report)
    ours, dense = contest.total(OURS).as_json(), contest.total("onnxruntime").as_json()
    return {
        **ours,
        "device": machine()["cpu"],
        "threads": threads,
        "dense": {"engine": "onnxruntime", **dense},
        "ratio": round(contest.ratio("onnxruntime"), 4),
    }


def _latency_there(
    target: Target,
    folder: Path,
    feeds: Mapping[str, np.ndarray],
    threads: int,
    device: str,
) -> dict[str, Any] | None:
    """Return the latency on a device beside this machine; None where it is not the real one."""
    timer = find_backend(target.backend).timer(folder, feeds, threads, device)
    if timer is None:
        return None
    (rounds,) = take_turns([timer], ROUNDS)
    samples = Samples.joined(rounds)
    if samples.device is not None:  # it says how many threads, too, where it has some
        return {**samples.as_json(), "device": samples.device}
    return {**samples.as_json(), "device": device, "threads": threads}
