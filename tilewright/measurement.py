"""Measurement: times as they were sampled, and the machine that they were sampled on."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp")
PACKAGES = ("apache-tvm", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Samples:
    """Durations of one call, repeated: nanoseconds, in the order they were taken.

    `device` names what ran them, where that is not the CPU of this machine.
    """

    samples_ns: tuple[int, ...]
    device: str | None = None

    def __post_init__(self) -> None:
        assert self.samples_ns, "a measurement needs at least one sample"

    @property
    def min_ms(self) -> float:
        """The fastest call: what the machine can do when nothing disturbs it."""
        return min(self.samples_ns) / 1e6

    @property
    def median_ms(self) -> float:
        """The middle call."""
        return self.percentile_ms(50)

    @property
    def spread(self) -> float:
        """Width of the middle 80 % relative to the median: 0.1 is a quiet machine."""
        return (self.percentile_ms(90) - self.percentile_ms(10)) / self.median_ms

    def percentile_ms(self, percent: float) -> float:
        """Return the time that so many percent of the calls stay under."""
        return float(np.percentile(self.samples_ns, percent)) / 1e6

    @classmethod
    def joined(cls, rounds: "Sequence[Samples]") -> "Samples":
        """Return the samples of all rounds, which one device took."""
        devices = {each.device for each in rounds}
        assert len(devices) == 1, f"rounds of one device, not of {devices}"
        return cls(tuple(ns for each in rounds for ns in each.samples_ns), devices.pop())

    def as_json(self) -> dict[str, Any]:
        """Return the figures that reports print, in milliseconds."""
        return {
            "min_ms": round(self.min_ms, 4),
            "median_ms": round(self.median_ms, 4),
            "p10_ms": round(self.percentile_ms(10), 4),
            "p90_ms": round(self.percentile_ms(90), 4),
            "spread": round(self.spread, 4),
            "samples": len(self.samples_ns),
        }


# Takes some more samples of one thing each time it is called.
Timer = Callable[[], Samples]


def take_turns(timers: Sequence[Timer], rounds: int) -> list[list[Samples]]:
    """Return the rounds of each timer: A B B A, as who comes second finds another machine."""
    taken: list[list[Samples]] = [[] for _ in timers]
    order = list(zip(timers, taken, strict=True))
    for index in range(rounds):
        for timer, samples in order[:: -1 if index % 2 else 1]:
            samples.append(timer())
    return taken


def sample(
    call: Callable[[], object],
    repeats: int,
    warm_up: int = 0,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Time `repeats` calls after `warm_up` that do not count."""
    for _ in range(warm_up):
        call()
    taken = []
    for _ in range(repeats):
        start = clock_ns()
        call()
        taken.append(clock_ns() - start)
    return Samples(tuple(taken))


def pairwise_ratio(other: Sequence[Samples], ours: Sequence[Samples]) -> float:
    """Return the median over rounds of other's median / our median: above 1 we are faster.

    Rounds were taken in turns, so slow drift of the machine cancels within each pair.
    """
    pairs = zip(other, ours, strict=True)
    return float(np.median([theirs.median_ms / mine.median_ms for theirs, mine in pairs]))


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Describe what measurements depend on: processor, cores, vector units, versions."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                model = value
            if key in ("flags", "Features"):
                flags.update(value.split())
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "vector": [flag for flag in VECTOR_FLAGS if flag in flags],
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
