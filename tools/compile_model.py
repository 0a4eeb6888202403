"""Compile: read, calibrate, run the passes, build, verify, measure, write."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright import artifact, oracle
from tilewright.cost import parameter_bytes, parameter_counts
from tilewright.errors import CheckFailed, UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.frontends.zoo import cache_folder
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.layout import Tile
from tilewright.measurement import machine, versions
from tilewright.memory import return_freed_memory
from tilewright.pipeline import Pipeline, Run
from tilewright.plan import Level, Plan
from tilewright.protocol import Build, Context, Executable, Report, silent
from tilewright.random_feeds import random_feeds
from tilewright.target import Target
from tilewright.timings import Timings, Tuning
from tilewright.tools.count_threads import count_threads
from tilewright.tools.evaluate_task import task_scores
from tilewright.tools.find_target import check_backend, find_backend, find_target
from tilewright.tools.measure_engines import OURS, measure_engines
from tilewright.tools.read_model import ZOO, Source, read_calibration, read_model
from tilewright.tools.resolve_pipeline import check_precision, reads_plan, resolve_pipeline
from tilewright.tools.write_report import write_report
from tilewright.trace import Trace
from tilewright.verify import Agreement, Outputs, compare, shaken
from tilewright.version import VERSION

# Our kernels and onnxruntime's add up in different orders; float32 networks then differ by up
# to 1e-4 of their largest output. A wrong kernel differs by far more than this.
AGREES = 1e-3
# Where a model rounds to integers, a sum that falls on the other side of a half moves a value
# by a whole step, and later layers may make much of it. What a shaken copy of the model differs
# by says how much; of chance, a few times that.
_TIMES_SHAKEN, _MOST_SHAKEN = 3.0, 0.5
_VERIFIED_SAMPLES = 4
# For --tune: how many ways to run a layer are tried, and seconds to do it in.
_TUNED = {"quick": (4, 60.0), "full": (16, 900.0)}
TUNE = ("0", *_TUNED)


@dataclass(frozen=True)
class Job:
    """What to compile, and how. `sparsity` None leaves the pipeline's own choice."""

    model: str
    target: str = "cpu"
    sparsity: float | None = None
    precision: str = "fp32"
    calibration: Path | None = None
    pipeline: str | None = None
    plan: Path | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None
    seed: int = 0
    tune: str = "0"
    output: Path | None = None
    evaluate: bool = True

    def __post_init__(self) -> None:
        """Raise UnusableInput where a number is none or makes no sense."""
        for name, value, least in (("threads", self.threads, 1), ("seed", self.seed, 0)):
            if value is not None and not (isinstance(value, int) and value >= least):
                raise UnusableInput(
                    f"{name} is {value!r}; give a whole number from {least} on."
                )
        if self.sparsity is not None and not isinstance(self.sparsity, int | float):
            raise UnusableInput(f"sparsity is {self.sparsity!r}; give a number, such as 0.6.")
        if self.tune not in TUNE:
            raise UnusableInput(f"tune is {self.tune!r}; give one of {', '.join(TUNE)}.")
        for name, size in self.dims.items():
            if not (isinstance(size, int) and size >= 1):
                raise UnusableInput(f'dims["{name}"] is {size!r}; give a size, such as 1.')

    @property
    def folder(self) -> Path:
        """Where the artifact goes: "ppocr-rec.cpu.tw" unless `output` says otherwise."""
        if self.output is not None:
            return self.output
        stem = self.model.removeprefix(ZOO) if self.model.startswith(ZOO) else self.model
        return Path(f"{Path(stem).stem}.{Path(self.target).stem}.tw")


def compile_model(job: Job, report: Report = silent) -> dict[str, Any]:
    """Compile a model and return its manifest, with "artifact" and "seconds" beside it.

    Raises UnusableInput before any work where an option or the place of output is of no use;
    PassFailed; CannotLower; CheckFailed where the artifact's answers are not its model's.
    The folder is then as it was before.
    """
    settled = target, pipeline, _, threads, _ = _settle(job, report)
    stages = _Stages()
    with artifact.writing(job.folder) as folder:
        with stages("read"):
            source = read_model(job.model, job.dims, report)
        built = _build(job, settled, source, folder, stages, report)
        backend = find_backend(target.backend)
        with stages("verify"):
            found = _outputs(backend.load(folder, threads), built.feeds)
            verified = _verify(folder / artifact.MODEL, source, pipeline, built, found)
        manifest = {
            **_identity(job, source, target, pipeline),
            **built.figures,
            "verified": verified,
        }
        with stages("latency"):
            manifest["latency"] = _latency(
                source, folder, manifest, built.feeds[0], threads, report
            )
        with stages("evaluate"):
            manifest["accuracy"] = (
                task_scores(source, backend.load(folder, threads), report)
                if job.evaluate and source.zoo
                else []
            )
        Plan(manifest["plan"]["levels"]).write(folder / "plan.json")
        write_report(folder, manifest, built.trace, stages.seconds)
        sealed = artifact.seal(folder, manifest)
    return {**sealed, "artifact": str(job.folder), "seconds": stages.seconds}


class _Settled(NamedTuple):
    """What is settled before any work: for what, by which passes, and how much where."""

    target: Target
    pipeline: Pipeline
    plan: Plan | None
    threads: int
    tuning: Tuning | None


def _settle(job: Job, report: Report) -> _Settled:
    target = find_target(job.target)
    check_precision(target, job.precision)
    check_backend(target.backend)
    plan = None if job.plan is None else Plan.read(job.plan)
    pipeline = resolve_pipeline(target, job.pipeline, job.sparsity, plan, job.precision, report)
    report(f"pipeline: {str(pipeline) or 'no passes'}")
    threads = count_threads(job.threads, report) or oracle.cores()
    return _Settled(target, pipeline, plan, threads, _tuning(job.tune, threads))


def _tuning(level: str, threads: int) -> Tuning | None:
    """Return what may be spent on measuring. Raises UnusableInput without a database."""
    if level not in _TUNED:
        return None
    ways, seconds = _TUNED[level]
    timings = Timings(cache_folder() / "timings.sqlite")
    timings.check()
    return Tuning(ways, seconds, threads, timings)


class _Built(NamedTuple):
    """What is left of transforming and lowering: no graph, for weights fill the memory."""

    figures: dict[str, Any]
    trace: Trace
    feeds: list[dict[str, np.ndarray]]
    rounds: bool  # somewhere to integers


class _Stages:
    """Seconds of each stage, as they pass."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._clock()
        yield
        return_freed_memory()
        self.seconds[name] = round(self._clock() - start, 3)


def _build(
    job: Job,
    settled: _Settled,
    source: Source,
    folder: Path,
    stages: _Stages,
    report: Report,
) -> _Built:
    target, pipeline, plan, _, tuning = settled
    with stages("calibrate"):
        calibration = read_calibration(source, job.calibration, job.seed, report)
        context = Context(target, calibration, job.seed, plan, job.precision, report)
        feeds = _feeds(source.graph, context)
    with stages("passes"):
        run = pipeline.run(source.graph, context)
        levels = plan.levels if plan else measured_levels(run, pipeline, context)
    with stages("build"):
        run.graph.save(folder / artifact.MODEL)
        build = find_backend(target.backend).build(run.graph, target, folder, report, tuning)
    rounds = any(node.op == "QuantizeLinear" for node in run.graph.nodes)
    return _Built(_figures(source.graph, run, build, levels), run.trace, feeds, rounds)


def _feeds(graph: Graph, context: Context) -> list[dict[str, np.ndarray]]:
    if context.calibration is not None:
        return list(islice(context.calibration.feeds(), _VERIFIED_SAMPLES))
    return list(random_feeds(graph, _VERIFIED_SAMPLES, context.seed))


def _outputs(executable: Executable, feeds: Sequence[dict[str, np.ndarray]]) -> list[Outputs]:
    return [executable(feed) for feed in feeds]


def _verify(
    saved: Path,
    source: Source,
    pipeline: Pipeline,
    built: _Built,
    found: Sequence[Outputs],
) -> dict[str, Any]:
    """Compare the artifact with its model.onnx, and with the original if nothing was lost."""
    allowed = _allowed(saved, built)
    against: dict[str, Graph | Path] = {"model.onnx": saved}
    if all(step.keeps_outputs for step in pipeline.passes):
        against["the original"] = source.graph
    worst = Agreement(0.0, 0.0, "")
    for name, model in against.items():
        agreement = _worst_agreement(model, built.feeds, found)
        if not agreement.within(allowed):
            raise CheckFailed(
                f"verify: the compiled artifact disagrees with {name} under onnxruntime: "
                f'output "{agreement.worst}" differs by {agreement.max_abs_error:.3g}, '
                f"{agreement.max_rel_error:.1e} of its largest value; {allowed:.1e} is "
                "allowed. Nothing was written; this is a fault of the target's kernels: "
                "report it."
            )
        worst = max(worst, agreement, key=lambda a: a.max_rel_error)
    return {
        "max_abs_error": worst.max_abs_error,
        "max_rel_error": worst.max_rel_error,
        "samples": len(built.feeds),
        "against": list(against),
    }


def _allowed(saved: Path, built: _Built) -> float:
    """Return how far the artifact's answers may be from its model's, over the largest one."""
    if not built.rounds:
        return AGREES
    model = shaken(read_onnx(saved))
    steady, moved = oracle.session(saved), oracle.session(model)
    away = max(
        compare(oracle.outputs_of(steady, f), oracle.outputs_of(moved, f)).max_rel_error
        for f in built.feeds
    )
    return max(AGREES, min(_TIMES_SHAKEN * away, _MOST_SHAKEN))


def _worst_agreement(
    model: Graph | Path, feeds: Sequence[dict[str, np.ndarray]], found: Sequence[Outputs]
) -> Agreement:
    session = oracle.session(model)
    return max(
        (compare(oracle.outputs_of(session, f), o) for f, o in zip(feeds, found, strict=True)),
        key=lambda agreement: agreement.max_rel_error,
    )


def _identity(job: Job, source: Source, target: Target, pipeline: Pipeline) -> dict[str, Any]:
    return {
        "tilewright": VERSION,
        "model": job.model if source.zoo else source.file.name,
        "model_sha256": source.sha256,
        "target": target.name,
        "backend": target.backend,
        "precision": job.precision,
        "pipeline": str(pipeline),
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
    """Return the share of empty tiles in each layer that lost any: a plan that prunes again."""
    fixed = [str(vars(step)["tile"]) for step in pipeline.passes if reads_plan(step)]
    if not fixed:
        return {}
    levels: dict[str, Level] = {}
    for layer in linear_layers(run.graph):
        own = context.target.tile_for(layer, context.precision)
        tile = Tile.parse(fixed[-1]) if any(fixed) else own
        share = _empty_tiles(layer, tile)
        if layer.name in run.pruned and share > 0:
            levels[layer.name] = {"sparsity": share, "tile": str(tile)}
    return levels


def _empty_tiles(layer: Layer, tile: Tile) -> float:
    """Return the share of tiles that hold zeros only; the last ones may be cut off."""
    matrix = layer.matrix() != 0
    if not matrix.size:
        return 0.0
    rows = np.add.reduceat(matrix, np.arange(0, matrix.shape[0], tile.outputs), axis=0)
    tiles = np.add.reduceat(rows, np.arange(0, matrix.shape[1], tile.inputs), axis=1)
    return 1 - int(np.count_nonzero(tiles)) / int(tiles.size)


def _latency(
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
