"""Tune: take, of the ways to run a layer, the one that is fastest within the whole model.

The model is built a few times, all its sites taking their first way, then one kind of site the
second way, the third, ... The builds run in turns, and every kernel is timed where it stands:
what is in the caches, and which core wrote it, is as it will be.
"""

import hashlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from tilewright.graph import Graph
from tilewright.measurement import machine
from tilewright.protocol import Report
from tilewright.target import Target
from tilewright.targets import FOLDER
from tilewright.targets.cpu_files import Lowered, write_files
from tilewright.targets.cpu_program import CpuProgram
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.choices import Pick, Picked, Site, estimated
from tilewright.targets.lower.program import Call, Part, Pool, Program
from tilewright.timings import Tuning

Lower = Callable[[Pick], Program]

# A way must be faster than the estimated one by so much: less may be the machine's mood.
_FASTER = 0.97
_PERCENTILE = 20  # of a kernel's times: most of what disturbs it makes it slower
_LEAST_RUNS, _MOST_RUNS = 7, 40


def tuned(
    lower: Lower, graph: Graph, target: Target, isa: Isa, tuning: Tuning, report: Report
) -> Pick:
    """Return what picks the fastest way at every site, measuring what is not known yet."""
    survey = _Survey(tuning, _device(isa, tuning.threads))
    lower(survey.note)
    if survey.unknown():
        _measure(survey, lower, graph, target, isa, report)
    return survey.pick


@dataclass(eq=False)
class _Survey:
    """The sites of a model: which ways there are, and how long each takes."""

    tuning: Tuning
    device: str
    ways: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    nodes: dict[tuple[str, str], set[tuple[str, ...]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    times: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)

    def note(self, site: Site, ways: Sequence[str]) -> Picked:
        """Note that there is a site, and what is known of its ways."""
        key = (site.kind, site.problem)
        self.nodes[key].add(site.nodes)
        if key not in self.ways:
            self.ways[key] = tuple(ways[: self.tuning.ways])
            known = self.tuning.timings.find(self.device, site.problem, self.ways[key])
            if known is not None or len(self.ways[key]) == 1:
                self.times[key] = known or (0.0,)
        return estimated(site, ways)

    def unknown(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """Return the problems whose ways have yet to be timed."""
        return {key: ways for key, ways in self.ways.items() if key not in self.times}

    def pick(self, site: Site, ways: Sequence[str]) -> Picked:
        """Pick the fastest way, the estimated one where that is not known."""
        times = self.times.get((site.kind, site.problem), ())
        if len(times) < 2:
            return Picked(0)
        best = int(np.argmin(times))
        number = best if times[best] < _FASTER * times[0] else 0
        other = min(range(len(times)), key=lambda n: (n == number, times[n]))
        return Picked(
            number,
            f"measured {times[number]:.0f} us, against {times[other]:.0f} us {ways[other]}",
        )


@dataclass(eq=False)
class _Variant:
    """The model built with sites of one kind taking the way of one number."""

    kind: str
    number: int
    program: CpuProgram
    nodes: list[frozenset[str]]  # of each part
    runs: list[list[int]] = field(default_factory=list)

    def takes(self, nodes: Sequence[str]) -> float:
        """Return the microseconds of all parts that some nodes run in."""
        of_nodes = [not part.isdisjoint(nodes) for part in self.nodes]
        typical = np.percentile(self.runs, _PERCENTILE, axis=0)
        return float(typical[of_nodes].sum()) / 1e3


def _measure(
    survey: _Survey, lower: Lower, graph: Graph, target: Target, isa: Isa, report: Report
) -> None:
    start = time.monotonic()
    end = start + survey.tuning.seconds
    unknown = survey.unknown()
    wanted = list(_numbers(unknown))
    built: list[_Variant] = []
    with ExitStack() as stack:
        for kind, number in wanted:
            begun = time.monotonic()
            if built and begun + (begun - start) / len(built) > end:
                report(f"tuning: time for {len(built)} of {len(wanted)} ways only")
                break
            report(f"tuning: building way {len(built) + 1} of {len(wanted)}")
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tilewright-"))
            program = lower(_taking(unknown, kind, number))
            parts: list[Part] = [[s] if isinstance(s, Call) else s for s in program.steps]
            pool = Pool()
            lowered = Lowered(program, parts, graph, pool.take(program))
            write_files([lowered], pool, target, isa, Path(folder), lambda _: None)
            executable = CpuProgram(Path(folder), survey.tuning.threads)
            nodes = [_nodes_of(part) for part in parts]
            built.append(_Variant(kind, number, executable, nodes))
        _run_in_turns(built, end, report)
    for (kind, problem), ways in unknown.items():
        tried = [v for v in built if v.number == 0 or v.kind == kind][: len(ways)]
        times = [
            float(np.mean([variant.takes(nodes) for nodes in survey.nodes[kind, problem]]))
            for variant in tried
        ]
        survey.times[kind, problem] = tuple(round(time_, 2) for time_ in times)
        if len(times) > 1:
            timings = survey.tuning.timings
            timings.keep(survey.device, problem, ways, survey.times[kind, problem])


def _numbers(unknown: dict[tuple[str, str], tuple[str, ...]]) -> Iterator[tuple[str, int]]:
    """Yield the kind and number of every variant; the first takes all estimates."""
    yield "", 0
    most: dict[str, int] = defaultdict(int)
    for (kind, _), ways in unknown.items():
        most[kind] = max(most[kind], len(ways))
    for number in range(1, max(most.values())):
        yield from ((kind, number) for kind, count_ in most.items() if number < count_)


def _taking(unknown: dict[tuple[str, str], tuple[str, ...]], kind: str, number: int) -> Pick:
    """Return a pick of the way of one number, where there are so many of its kind."""

    def pick(site: Site, ways: Sequence[str]) -> Picked:
        tried = unknown.get((site.kind, site.problem), ())
        return Picked(number if site.kind == kind and number < len(tried) else 0)

    return pick


def _run_in_turns(variants: Sequence[_Variant], end: float, report: Report) -> None:
    """Run every variant some times, so that a change of the machine's speed meets all."""
    for variant in variants:
        variant.program.time_parts()  # what is read for the first time is slow
    for turn in count():
        if turn >= _MOST_RUNS or (turn >= _LEAST_RUNS and time.monotonic() > end):
            return
        report(f"tuning: run {turn + 1}")
        for variant in variants:
            variant.runs.append(variant.program.time_parts())


def _nodes_of(part: Part) -> frozenset[str]:
    if isinstance(part, list):
        return frozenset(name for call in part for name in call.nodes)
    return frozenset({part.node.name})


def _device(isa: Isa, threads: int) -> str:
    """Describe all that a time hangs on but the problem."""
    kernels = hashlib.sha256()
    for file in sorted((FOLDER / "kernels").glob("*.py")):
        kernels.update(file.read_bytes())
    cpu = machine()["cpu"]
    return f"{cpu}, {isa.name}, {threads} threads, kernels {kernels.hexdigest()[:12]}"
