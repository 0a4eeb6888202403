"""What a search is about: a network, the layers that it may prune, samples, what is known."""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import tilewright
from tilewright import oracle
from tilewright.answers import Answers
from tilewright.cache import cache_folder
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.findings import Findings
from tilewright.graph import Graph
from tilewright.layout import Tile
from tilewright.measurement import Samples, Timer, machine, take_turns, versions
from tilewright.passes.prune.candidates import Candidates, candidates
from tilewright.passes.prune.choose_tiles import Choice
from tilewright.passes.prune.tile_errors import TileErrors
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.pipeline import Pipeline
from tilewright.plan import Level, Plan
from tilewright.protocol import HOST, Context, Feeds, Report, Steps
from tilewright.target import Target
from tilewright.tools.count_threads import count_threads
from tilewright.tools.find_target import find_backend, find_target, parse_pipeline
from tilewright.tools.measure_engines import OURS, ROUNDS, measure_engines
from tilewright.tools.read_model import read_calibration, read_model
from tilewright.tools.resolve_pipeline import check_precision, resolve_pipeline
from tilewright.tools.search_job import Search
from tilewright.version import VERSION

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)  # of a layer's tiles; dense is a level too
_HELD_OUT = 4  # one calibration sample of so many judges what was fitted to the others
_PROBED = 32  # of those, with which layers are looked at one at a time


class Subject:
    """A network, read once, and what can be measured of its layers.

    What hangs on the network alone is kept in `of_answers`; times, which hang on the machine
    too, in `of_times`.
    """

    def __init__(self, search: Search, report: Report) -> None:
        """Read and check everything. Raises UnusableInput."""
        self.search = search
        self.report = report
        self.target = find_target(search.target)
        self.precision = check_precision(self.target, search.precision)
        self.backend = find_backend(self.target.backend)
        self.device = self.backend.find_device(search.device)
        self.threads = search.threads or 0
        if self.device == HOST:
            self.threads = count_threads(search.threads, report) or oracle.cores()
        self.step = _pruning_step(self.target)
        self.pipeline = resolve_pipeline(
            self.target, None, None, Plan(), self.precision, report
        )
        report(f"reading {search.model}")
        self.source = read_model(search.model, search.dims, report)
        self.calibration = self._samples()
        self.fitted, self.held = self.calibration.held_out(_HELD_OUT)
        found = self._candidates()
        self.layers, self.notes = found.layers, found.notes
        answers = self._question()
        here = f"{machine()['cpu']}, {oracle.cores()} cores"
        device = here if self.device == HOST else self.device
        times = f"{answers}, {device}, {self.threads} threads"
        self.of_answers = Findings(cache_folder() / "searches.sqlite", answers)
        self.of_times = Findings(cache_folder() / "searches.sqlite", times)

    @cached_property
    def answers(self) -> Answers:
        """The original network's, on the samples that nothing is fitted to."""
        return Answers(self.source.graph, self.held)

    @cached_property
    def before(self) -> Graph:
        """The network as the pruning pass finds it, its nodes in order."""
        passes = self.pipeline.passes
        early = Pipeline(passes[: passes.index(self.step)])
        return early.run(self.source.graph, self._context(None)).graph.edit().sorted()

    @cached_property
    def tiles(self) -> dict[str, Tile]:
        """The tile that the target runs for each layer."""
        return {
            layer.name: self.target.tile_for(layer, self.precision) for layer in self.layers
        }

    def level(self, layer: str, sparsity: float) -> Level:
        """Return how a plan says what a layer loses."""
        return {"sparsity": sparsity, "tile": str(self.tiles[layer])}

    def pruned(self, plan: Plan, calibration: Calibration) -> Graph:
        """Return what `compile --plan` makes of the network, fitted to some samples."""
        context = dataclasses.replace(self._context(plan), calibration=calibration)
        return self.pipeline.run(self.source.graph, context).graph

    def steps(self, sparsity: float, folder: Path) -> Steps:
        """Build the network with all layers at one sparsity, for their times alone."""
        levels = {layer.name: self.level(layer.name, sparsity) for layer in self.layers}
        quick = dataclasses.replace(
            self.step, criterion="magnitude", refit=False, allocate="uniform", rows="uniform"
        )
        passes = [quick if step == self.step else step for step in self.pipeline.passes]
        context = self._context(Plan(levels if sparsity else {}))
        graph = Pipeline(tuple(passes)).run(self.source.graph, context).graph
        feeds = next(self.held.feeds())
        return self.backend.steps(graph, self.target, folder, feeds, self.threads, self.device)

    def time(self, models: Mapping[str, Path]) -> dict[str, Samples]:
        """Time artifacts in turns; on this machine each in a process of its own.

        Raises UnusableInput where the device has no clock, and DeviceFailed.
        """
        feeds = next(self.held.feeds())
        if self.device != HOST:
            timers = [self._timer(folder, feeds) for folder in models.values()]
            rounds = take_turns(timers, ROUNDS)
            return dict(zip(models, map(Samples.joined, rounds), strict=True))
        ours = dict.fromkeys(models, OURS)
        contest = measure_engines(
            models, feeds, self.threads, engine_of=ours, report=self.report
        )
        return {name: contest.total(name) for name in models}

    def _timer(self, folder: Path, feeds: Feeds) -> Timer:
        timer = self.backend.timer(folder, feeds, self.threads, self.device)
        if timer is None:
            raise UnusableInput(
                f"search: latencies are asked for, and {self.device} is not the device that "
                f"{self.target.name} is for. Give --device with one that is."
            )
        return timer

    def errors(self) -> dict[str, list[float]]:
        """Return the error of the answers with each layer alone at each level, dense first."""
        probe: TileErrors | None = None
        found: dict[str, list[float]] = {}
        for index, layer in enumerate(self.layers):
            tile = self.tiles[layer.name]
            items = [f"error of {layer.name} without {s} of its {tile}" for s in SPARSITIES]
            errors = [self.of_answers.find(item) for item in items]
            if None in errors:
                self.report(f"errors of {layer.name} ({index + 1} of {len(self.layers)})")
                probe = probe or self._probe()
            for at, sparsity in enumerate(SPARSITIES):
                if errors[at] is None:
                    assert probe is not None, "something is to be measured"
                    gathers = self.target.gathers_rows(layer, self.precision)
                    errors[at] = probe.of(layer.name, Choice(tile, sparsity, gathers))
                    self.of_answers.keep(items[at], errors[at])
            found[layer.name] = [0.0, *errors]
        return found

    def _probe(self) -> TileErrors:
        held = self.held.first(_PROBED)
        damp, seed = self.step.damp, self.search.seed
        return TileErrors(self.before, self.fitted, held, damp=damp, seed=seed)

    def _samples(self) -> Calibration:
        search = self.search
        found = read_calibration(self.source, search.calibration, search.seed, self.report)
        if found is None or found.samples < _HELD_OUT:
            given = "none are" if found is None else f"only {found.samples} are"
            raise UnusableInput(
                "search: it fits layers to some example inputs and judges the answers on "
                f"others, but {given} given. Give --calibration FILE.npz with {_HELD_OUT} "
                "samples or more."
            )
        return found

    def _candidates(self) -> Candidates:
        """Return the layers that may be pruned; grouped convolutions cannot be refitted."""
        step = self.step
        found = candidates(
            self.before, ends=step.ends, smallest=step.smallest, grouped=False, skip=step.skip
        )
        if not found.layers:
            reasons = "; ".join(f"{note.node}: {note.reason}" for note in found.notes[:3])
            raise UnusableInput(
                f"search: {self.search.model} has no layer that may be pruned "
                f"({reasons or 'no linear layer at all'}). There is nothing to search for."
            )
        return found

    def _question(self) -> str:
        """Return all that answers hang on, as a hash."""
        search, digest = self.search, hashlib.sha256()
        known = (self.source.sha256, sorted(search.dims.items()), self.precision)
        settled = (self.target, str(self.pipeline), search.seed, VERSION, versions())
        digest.update(repr((known, settled)).encode())
        for feeds in self.calibration.feeds():
            for name, values in sorted(feeds.items()):
                digest.update(f"{name} {values.dtype} {values.shape}".encode())
                digest.update(values.tobytes())
        for file in _sources():
            digest.update(file.read_bytes())
        return digest.hexdigest()[:24]

    def _context(self, plan: Plan | None) -> Context:
        search = self.search
        return Context(self.target, self.fitted, search.seed, plan, self.precision, self.report)


def _pruning_step(target: Target) -> PruneTiles:
    for step in parse_pipeline(target.default_pipeline).passes:
        if isinstance(step, PruneTiles):
            return step
    raise UnusableInput(
        f'search: the pipeline of the target {target.name}, "{target.default_pipeline}", has '
        "no prune-tiles, which plans are for. Give another target."
    )


def _sources() -> list[Path]:
    """Return the files that what is measured hangs on."""
    root = Path(tilewright.__file__).parent
    folders = [(root / name).resolve() for name in ("passes", "targets")]
    return sorted([*root.glob("*.py"), *(f for g in folders for f in g.rglob("*.py"))])
