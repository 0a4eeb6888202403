"""Time how long layers take at each level of sparsity, each kernel within the whole model."""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.findings import Findings
from tilewright.protocol import Report, Steps
from tilewright.steps import StepTimes, meeting, time_in_turns
from tilewright.tools.choose_levels import TimedLayers
from tilewright.tools.share_jobs import share_jobs

_SECONDS = 10.0  # of a level's runs, at most
Against = tuple[StepTimes, StepTimes]  # the dense build, and one with pruned layers, in turns


def time_levels(
    sparsities: Sequence[float],
    built: Callable[[float, Path], Steps],
    findings: Findings,
    devices: int,
    report: Report,
) -> list[Against]:
    """Time a build at every sparsity in turns with the dense one, on so many devices at once.

    `built(sparsity, folder)` builds the model with all layers at one sparsity. What `findings`
    knows is not built again; the rest is kept there one by one.
    """
    with tempfile.TemporaryDirectory(prefix="tilewright-") as scratch:
        own = threading.local()  # each thread has a device, and the dense build on it

        def build(sparsity: float) -> Steps:
            return built(sparsity, Path(tempfile.mkdtemp(dir=scratch)))

        def measure(sparsity: float) -> None:
            report(f"times at sparsity {sparsity}: building")
            dense, own.dense = getattr(own, "dense", None) or build(0.0), None
            pair = [dense, build(sparsity)]
            report(f"times at sparsity {sparsity}: running")
            taken = time_in_turns(pair, time.monotonic() + _SECONDS, lambda _: None)
            findings.keep(_item(sparsity), [_as_json(times) for times in taken])
            own.dense = dense  # not where the device failed: it is gone with it

        unknown = [s for s in sparsities if findings.find(_item(s)) is None]
        if devices == 1:
            for sparsity in unknown:
                measure(sparsity)
        else:
            share_jobs(unknown, devices, measure, report)
    known = [findings.find(_item(sparsity)) for sparsity in sparsities]
    return [(_times(dense), _times(pruned)) for dense, pruned in known]


def places_of(
    errors: Mapping[str, Sequence[float]], times: Sequence[Against]
) -> tuple[list[TimedLayers], float]:
    """Return the places that layers share, and the milliseconds of all dense steps.

    `errors[layer]` holds one error for each level, of which the first is dense and the others
    are those that were timed. A place's time at a level is the dense one, the median over all
    turns, times the ratio that was seen in that level's turn.
    """
    builds = [found.nodes for pair in times for found in pair]
    places: list[TimedLayers] = []
    placed: set[str] = set()
    for layer in errors:
        if layer in placed:
            continue
        nodes = meeting({layer}, builds)
        members = tuple(name for name in errors if name in nodes)
        placed |= set(members)
        dense = np.array([pair[0].of(nodes) for pair in times])
        pruned = np.array([pair[1].of(nodes) for pair in times])
        ratios = np.divide(pruned, dense, out=np.ones_like(dense), where=dense > 0)
        ms = np.median(dense) / 1e3 * np.array([1.0, *ratios])
        places.append(TimedLayers(members, np.sum([errors[n] for n in members], axis=0), ms))
    whole = float(np.median([sum(pair[0].microseconds) for pair in times])) / 1e3
    return places, whole


def _item(sparsity: float) -> str:
    return f"times at sparsity {sparsity}"


def _as_json(times: StepTimes) -> dict[str, Any]:
    return {
        "nodes": [sorted(nodes) for nodes in times.nodes],
        "microseconds": [round(each, 3) for each in times.microseconds],
    }


def _times(stored: Mapping[str, Any]) -> StepTimes:
    nodes = tuple(frozenset(names) for names in stored["nodes"])
    return StepTimes(nodes, tuple(stored["microseconds"]))
