"""The contracts between the core and what plugs into it: passes, frontends, backends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tilewright.calibration import Calibration
from tilewright.facts import Fact
from tilewright.graph import Graph
from tilewright.measurement import Timer
from tilewright.plan import Plan
from tilewright.target import Target
from tilewright.timings import Tuning

Feeds = Mapping[str, np.ndarray]
Report = Callable[[str], None]


def silent(_: str) -> None:
    """Report nothing."""


class Note(NamedTuple):
    """Why something was left alone: a node's name and the reason in one sentence."""

    node: str
    reason: str


class Outcome(NamedTuple):
    """What a pass returns: the new graph, and notes on what it left alone."""

    graph: Graph
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a pass may look at: read-only, handed down.

    A `plan` overrules a pass's own choice of how much where. `precision` is the arithmetic that
    the kernels will use, which decides what tiles they run. `dense` is the network before the
    first pass that changed its answers; `unfinished` a folder for what an interrupted pass goes
    on from; `behind` the passes that will follow.
    """

    target: Target
    calibration: Calibration | None = None
    seed: int = 0
    plan: Plan | None = None
    precision: str = "fp32"
    report: Report = silent
    dense: Graph | None = None
    unfinished: Path | None = None
    behind: "tuple[Pass, ...]" = ()


@runtime_checkable
class Pass(Protocol):
    """A pure function from graph to graph, as a frozen dataclass whose fields are its options.

    Options are int, float, bool, str or tuples of them, so that a pipeline prints and parses.
    The Pipeline checks `needs` before, adds `gives` and drops `takes` after, and verifies
    every fact that is claimed. A pass with `keeps_outputs` promises the same answers.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    needs: ClassVar[frozenset[Fact]]
    gives: ClassVar[frozenset[Fact]]
    takes: ClassVar[frozenset[Fact]]
    keeps_outputs: ClassVar[bool]

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        """Return the new graph; never change the one that was given."""
        ...


@runtime_checkable
class Checked(Protocol):
    """A pass that lacks something now and then, and knows so before any other has run."""

    def check(self, context: Context, /) -> None:
        """Raise UnusableInput where data or packages are missing that it needs."""
        ...


class LayerDecision(NamedTuple):
    """How one linear layer runs on the device, and why.

    `stored_bytes` is what the artifact keeps for it: weights, and where they belong.
    """

    name: str
    op: str
    shape: tuple[int, int, int]  # outputs, inputs, positions
    tile: str
    density: float
    bits: int
    stored_bytes: int
    kernel: str
    reason: str


class Estimate(NamedTuple):
    """What a model of a device says that one inference takes. Nothing was timed."""

    cycles: float
    model: str


class Build(NamedTuple):
    """What a backend wrote: decisions for the report, nodes that run elsewhere, bytes kept."""

    layers: tuple[LayerDecision, ...]
    islands: tuple[Note, ...]
    stored_bytes: int
    details: Mapping[str, str]


Executable = Callable[[Feeds], dict[str, np.ndarray]]


class Steps(NamedTuple):
    """A built model that is timed step by step: which nodes of the graph each step runs.

    `time()` runs it once and returns the nanoseconds of each step.
    """

    nodes: Sequence[frozenset[str]]
    time: Callable[[], Sequence[int]]


# The device that is this machine's own CPU: artifacts for it are timed beside other engines.
HOST = "host"


class Backend(Protocol):
    """Code that builds for one kind of device.

    `slack` is by how much, relative, its numbers may be off before a model rounds them to
    integers.
    """

    name: ClassVar[str]
    slack: ClassVar[float]

    def find_device(self, asked: str | None) -> str:
        """Return where artifacts run: what a user asked for, or the best that there is.

        Raises UnusableInput for what is no device of this kind, or is not there.
        """
        ...

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        """Raise UnusableInput, before any work, where nothing can be built for a target.

        The same where `device` is known not to run what would be built.
        """
        ...

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Write the executable form of a model into `folder`. Raises CannotLower.

        `graphs` are the model at each shape of its inputs that it will be run at; decisions
        that are reported are those for the first.
        With `tuning`, what the device runs faster is measured; else it is estimated.
        """
        ...

    def estimate(self, folder: Path, target: Target, report: Report) -> Estimate | None:
        """Return what a model of the device says of what was built in a folder.

        None where there is no model, or where it lacks a tool, which `report` is told.
        """
        ...

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> Executable:
        """Return a function from feeds to outputs, which runs on what `find_device` finds."""
        ...

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Timer | None:
        """Load an artifact on a device other than HOST; return what times it there for a while.

        None where that is not the real device. Timers that live at the same time are of the
        same board.
        """
        ...

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str,
    ) -> Steps:
        """Build a model so that the device times it step by step, on the same inputs each time.

        What is written lies in `folder`. Raises CannotLower, and UnusableInput where the device
        cannot run what the target asks for, or cannot time it.
        """
        ...

    def boards(self, device: str) -> int:
        """Return how many devices of a kind there are to share out work among."""
        ...
