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
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tvm

from tilewright.graph import Graph
from tilewright.measurement import machine
from tilewright.protocol import Report, Steps
from tilewright.steps import StepTimes, meeting, time_in_turns
from tilewright.target import Target
from tilewright.targets import FOLDER
from tilewright.targets.cpu_steps import build_steps
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.program import Program
from tilewright.targets.lower.sites import Pick, Picked, Site, estimated
from tilewright.timings import Tuning

Lower = Callable[[Pick], Program]

# A way must be faster than the estimated one by so much: less may be the machine's mood.
_FASTER = 0.97


def tuned(
    lower: Lower,
    graph: Graph,
    target: Target,
    isa: Isa,
    tuning: Tuning,
    folder: Path,
    report: Report,
) -> Pick:
    """Return what picks the fastest way at every site, measuring what is not known yet.

    What is built for that lies in `folder` for as long as it is measured.
    """
    survey = _Survey(tuning, _device(isa, tuning.threads))
    lower(survey.note)
    if survey.unknown():
        _measure(survey, lower, graph, target, isa, folder, report)
    return survey.pick


class _Question(NamedTuple):
    """Which of these ways is the fastest? The same at every site that asks it."""

    kind: str
    problem: str
    ways: tuple[str, ...]

    @classmethod
    def at(cls, site: Site, ways: Sequence[str]) -> "_Question":
        return cls(site.kind, site.problem, tuple(ways))


@dataclass(eq=False)
class _Survey:
    """The sites of a model: which ways there are, and how long each takes."""

    tuning: Tuning
    device: str
    nodes: dict[_Question, set[tuple[str, ...]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    times: dict[_Question, tuple[float, ...]] = field(default_factory=dict)

    def note(self, site: Site, ways: Sequence[str]) -> Picked:
        """Note that there is a site, and what is known of its ways."""
        question = _Question.at(site, ways)
        if question not in self.nodes:
            found = self.tuning.timings.find(self.device, question.problem, question.ways)
            self.times[question] = found or ()
        self.nodes[question].add(site.nodes)
        return estimated(site, ways)

    def tried(self, question: "_Question") -> int:
        """Return how many ways of a question are to be timed."""
        return min(len(question.ways), self.tuning.ways)

    def unknown(self) -> list["_Question"]:
        """Return the questions of which fewer ways are timed than may be."""
        return [q for q, times in self.times.items() if len(times) < self.tried(q) > 1]

    def pick(self, site: Site, ways: Sequence[str]) -> Picked:
        """Pick the fastest way, the estimated one where that is not known."""
        times = self.times.get(_Question.at(site, ways), ())
        if len(times) < 2:
            return Picked(0)
        best = int(np.argmin(times))
        number = best if times[best] < _FASTER * times[0] else 0
        other = min(range(len(times)), key=lambda n: (n == number, times[n]))
        return Picked(
            number,
            f"measured {times[number]:.0f} us, against {times[other]:.0f} us {ways[other]}",
        )


class _Variant(NamedTuple):
    """The model built with sites of one kind taking the way of one number."""

    kind: str
    number: int
    steps: Steps


def _measure(
    survey: _Survey,
    lower: Lower,
    graph: Graph,
    target: Target,
    isa: Isa,
    folder: Path,
    report: Report,
) -> None:
    """Time what is not known of the survey's questions, as far as there is time."""
    start = time.monotonic()
    end = start + survey.tuning.seconds
    unknown = survey.unknown()
    wanted = list(_numbers(unknown, survey))
    variants: list[_Variant] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for kind, number in wanted:
            begun = time.monotonic()
            if variants and begun + (begun - start) / len(variants) > end:
                report(f"tuning: time for {len(variants)} of {len(wanted)} ways only")
                break
            report(f"tuning: building way {len(variants) + 1} of {len(wanted)}")
            place = Path(scratch) / str(len(variants))
            place.mkdir()
            program = lower(_taking(unknown, kind, number))
            steps = build_steps(program, graph, target, isa, place, survey.tuning.threads)
            variants.append(_Variant(kind, number, steps))
        if len(variants) > 1:
            times = time_in_turns(
                [v.steps for v in variants], end, lambda run: report(f"tuning: {run}")
            )
            _conclude(survey, unknown, variants, times)


def _conclude(
    survey: _Survey,
    unknown: Sequence[_Question],
    variants: Sequence[_Variant],
    times: Sequence[StepTimes],
) -> None:
    """Note and keep the times of the ways that the variants took."""
    for question in unknown:
        taken = [
            found
            for variant, found in zip(variants, times, strict=True)
            if variant.number == 0 or variant.kind == question.kind
        ]
        taken = taken[: survey.tried(question)]
        steps = [found.nodes for found in taken]
        places = [meeting(nodes, steps) for nodes in survey.nodes[question]]
        means = [
            round(float(np.mean([found.of(nodes) for nodes in places])), 2) for found in taken
        ]
        survey.times[question] = tuple(means)
        if len(means) > 1:
            timings = survey.tuning.timings
            timings.keep(survey.device, question.problem, question.ways, means)


def _numbers(unknown: Sequence[_Question], survey: _Survey) -> Iterator[tuple[str, int]]:
    """Yield the kind and number of every variant; the first takes all estimates."""
    yield "", 0
    most: dict[str, int] = defaultdict(int)
    for question in unknown:
        most[question.kind] = max(most[question.kind], survey.tried(question))
    for number in range(1, max(most.values())):
        yield from ((kind, number) for kind, count_ in most.items() if number < count_)


def _taking(unknown: Sequence[_Question], kind: str, number: int) -> Pick:
    """Return a pick of the way of one number, where there are so many of its kind."""
    asked = set(unknown)

    def pick(site: Site, ways: Sequence[str]) -> Picked:
        open_ = site.kind == kind and number < len(ways) and _Question.at(site, ways) in asked
        return Picked(number if open_ else 0)

    return pick


def _device(isa: Isa, threads: int) -> str:
    """Describe all that a time hangs on but the question."""
    code = hashlib.sha256(f"{isa} {tvm.__version__}".encode())
    for file in sorted([*(FOLDER / "kernels").glob("*.py"), *(FOLDER / "lower").glob("*.py")]):
        code.update(file.read_bytes())
    cpu = machine()["cpu"]
    return f"{cpu}, {isa.name}, {threads} threads, kernels {code.hexdigest()[:12]}"
