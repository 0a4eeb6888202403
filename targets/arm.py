"""The arm-edge backend: the tile kernels for NEON, cross-compiled, and run on a board."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tilewright.artifact import read_json, write_json
from tilewright.compare import FLOAT32_SLACK
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.measurement import Timer
from tilewright.nbits import in_floats
from tilewright.protocol import Build, Estimate, Feeds, Report, Steps, silent
from tilewright.target import Target
from tilewright.targets.board.estimate import (
    Core,
    as_json,
    estimate_cycles,
    missing_tools,
)
from tilewright.targets.board.greeting import check_server
from tilewright.targets.board.held import INDICES
from tilewright.targets.board.loaded import MACHINE, LoadedOnBoard, tools_for, write_machine
from tilewright.targets.board.make import board_programs
from tilewright.targets.board.place import QEMU, TRACKER, parse_place
from tilewright.targets.board.tracker import check_fleet, free_boards
from tilewright.targets.kernels.integer import DOTS
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.link import Toolchain
from tilewright.targets.lower.lower_graph import lowering_of
from tilewright.targets.lower.module import function_name, llvm_target
from tilewright.targets.lower.program import Call, Part, Pool, Program, nodes_of, segments
from tilewright.targets.lower.sites import estimated
from tilewright.targets.program_files import (
    Lowered,
    Storage,
    Written,
    write_files,
)
from tilewright.timings import Tuning

ESTIMATE = "estimate.json"  # of an artifact: the cycles that it is estimated to take


class ArmBackend:
    """Builds shared libraries for 64-bit Arm and runs them on a board or in an emulator."""

    name: ClassVar[str] = "arm-edge"
    slack: ClassVar[float] = FLOAT32_SLACK

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Lower, compile and write `lib.so`, the packed weights and `program.json`.

        `graphs` are one model at several shapes of its inputs. Raises CannotLower where a node
        has no kernel: a board has nothing else to run it.
        """
        report("lowering")
        pool = Pool()
        lowered = []
        for graph in graphs:
            program = _lowered(graph, target, report)
            lowered.append(Lowered(program, segments(program), graph, pool.take(program)))
        written = _write(lowered, pool, target, folder, report)
        # Whatever runs it needs them, and here it is told what is being waited for.
        board_programs(isa_of(target).triple, report)
        first = lowered[0].program
        return Build(
            layers=tuple(first.layers),
            islands=(),
            stored_bytes=written.stored_bytes,
            details={
                "isa": isa_of(target).name,
                "calls": str(len(first.steps)),
                "arena_bytes": str(written.arena_bytes),
            },
        )

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        """Raise UnusableInput for --tune, without a cross compiler, for a .toml with gaps.

        Raises DeviceFailed where the board, or its fleet, does not answer.
        """
        if tuning is not None:
            raise UnusableInput(
                f"--tune times kernels on this machine, and {target.name} is another one. "
                "Leave the option out; what is faster is estimated."
            )
        isa = isa_of(target)
        llvm_target(isa)
        Toolchain(isa.triple).command("gcc")
        _emulated(target, "qemu_cpu")
        _core_of(target)
        place = parse_place(device)
        if place.kind != QEMU:
            (check_fleet if place.kind == TRACKER else check_server)(place)

    def find_device(self, asked: str | None) -> str:
        """Return the place that --device names, or the emulator where it is installed."""
        return str(parse_place(asked))

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> LoadedOnBoard:
        """Return a function from feeds to outputs that runs on a board, which it holds."""
        return LoadedOnBoard(folder, threads, parse_place(device))

    def estimate(self, folder: Path, target: Target, report: Report) -> Estimate | None:
        """Estimate the cycles of one core, and write where they go into `estimate.json`."""
        if missing := missing_tools():
            report(f"no estimate of cycles, for want of tools: apt-get install {missing}")
            return None
        core = _core_of(target)
        report("estimating cycles: counting instructions in QEMU")
        try:
            functions = estimate_cycles(folder, *tools_for(folder), core)
        except UnusableInput as error:  # the artifact is none the worse
            report(f"no estimate of cycles: {error}")
            return None
        described = as_json(functions, core, read_json(folder / MACHINE)["kernels"])
        write_json(folder / ESTIMATE, described)
        return Estimate(described["cycles"], described["model"])

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> Timer | None:
        """Return what times inferences by a board's own clock; the emulator has none."""
        if device == QEMU:
            return None
        loaded = self.load(folder, threads, device)
        loaded(feeds)
        return loaded.time

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str,
    ) -> Steps:
        """Build a model so that each of its kernels is timed on a board.

        Raises CannotLower, and UnusableInput where the device has no clock.
        """
        if device == QEMU:
            raise UnusableInput(
                "Kernels are to be timed, and QEMU has no clock that says what a board takes. "
                "Give --device rpc://HOST:PORT of a board."
            )
        program = _lowered(graph, target, silent)
        parts: list[Part] = [[step] for step in program.steps if isinstance(step, Call)]
        pool = Pool()
        lowered = [Lowered(program, parts, graph, pool.take(program))]
        _write(lowered, pool, target, folder, silent)
        loaded = self.load(folder, threads, device)
        loaded(feeds)
        return Steps(nodes_of(parts), loaded.time_parts)

    def boards(self, device: str) -> int:
        """Return how many boards are free at a place; one at least, which may come back."""
        place = parse_place(device)
        return max(1, free_boards(place)) if place.kind == TRACKER else 1


def isa_of(target: Target) -> Isa:
    """Return the instruction set that a target's file describes. Raises UnusableInput."""
    table: Mapping[str, Any] = target.settings.get("isa", {})
    try:
        if table["dot"] not in DOTS:
            raise UnusableInput(
                f'Target {target.name}: dot is "{table["dot"]}"; give sdot or smull.'
            )
        return Isa(
            name=table["name"],
            mcpu=table["mcpu"],
            lanes=table["lanes_fp32"],
            registers=table["registers"],
            dot=table["dot"],
            features=tuple(table["features"]),
            needs=tuple(table["needs"]),
            triple=table["triple"],
            by_element=True,
        )
    except (KeyError, TypeError) as error:
        raise UnusableInput(
            f"Target {target.name}: the table [isa] lacks {error}. "
            "Compare with targets/arm-edge.toml."
        ) from error


def _core_of(target: Target) -> Core:
    """Return the model of a target's core. Raises UnusableInput."""
    return Core(
        str(_emulated(target, "llvm_mca_cpu")), _cache(target, "l1"), _cache(target, "l2")
    )


def _cache(target: Target, level: str) -> tuple[int, int, float]:
    found = _emulated(target, level)
    if not isinstance(found, list) or len(found) != 3 or not all(_is_size(n) for n in found):
        raise UnusableInput(
            f"Target {target.name}: {level} of [emulated] is {found!r}, and must be [KiB, "
            "ways, cycles of a line that is not there], such as [64, 4, 2.0]."
        )
    kib, ways, cycles = found
    return kib, ways, cycles


def _is_size(number: object) -> bool:
    return isinstance(number, int | float) and number > 0


def _emulated(target: Target, key: str) -> Any:
    table = target.settings.get("emulated", {})
    if key not in table:
        raise UnusableInput(
            f'Target {target.name}: the table [emulated] lacks "{key}". '
            "Compare with targets/arm-edge.toml."
        )
    return table[key]


def _lowered(graph: Graph, target: Target, report: Report) -> Program:
    """Lower a graph. Raises CannotLower where a node has no kernel."""
    program = lowering_of(in_floats(graph), target, isa_of(target), report)(estimated)
    if program.islands:
        named = "; ".join(f"{note.node}: {note.reason}" for note in program.islands[:5])
        more = f" (and {len(program.islands) - 5} more)" if len(program.islands) > 5 else ""
        raise CannotLower(
            f"Target {target.name} has no kernel for {named}{more}. A board has no other "
            "engine to run them: take the nodes out of the model, or compile for cpu."
        )
    return program


def _write(
    lowered: Sequence[Lowered], pool: Pool, target: Target, folder: Path, report: Report
) -> Written:
    """Write what a board runs, and what it is for."""
    isa = isa_of(target)
    storage = Storage(Toolchain(isa.triple).link_shared, INDICES, np.ndarray.tobytes)
    nodes: dict[str, list[str]] = {}
    for step in lowered[0].program.steps:
        assert isinstance(step, Call), "nothing else runs on a board"
        nodes.setdefault(function_name(step.kernel), []).extend(step.nodes)
    write_machine(folder, isa.triple, str(_emulated(target, "qemu_cpu")), nodes)
    return write_files(lowered, pool, target, isa, storage, folder, report)
