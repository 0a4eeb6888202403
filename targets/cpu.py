"""The cpu backend: tile kernels through TVM's LLVM; cpu_program.py runs what it writes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tilewright.compare import FLOAT32_SLACK
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.nbits import in_floats
from tilewright.protocol import HOST, Build, Feeds, Report, Steps, silent
from tilewright.target import Target
from tilewright.targets.cpu_program import STORAGE, CpuProgram, cpu_flags
from tilewright.targets.cpu_steps import build_steps
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.lower_graph import lowering_of
from tilewright.targets.lower.module import llvm_target
from tilewright.targets.lower.program import Pool, Program, segments
from tilewright.targets.lower.sites import estimated
from tilewright.targets.program_files import Lowered, write_files
from tilewright.targets.tune import tuned
from tilewright.timings import Tuning


class CpuBackend:
    """Builds shared libraries for x86-64 and runs them in process."""

    name: ClassVar[str] = "cpu"
    slack: ClassVar[float] = FLOAT32_SLACK

    def check(self, target: Target, device: str, tuning: Tuning | None) -> None:
        """Raise UnusableInput for unknown instruction sets, or to measure on another CPU."""
        isa = isa_of(target)
        llvm_target(isa)
        if tuning is not None:
            _check_measurable(isa)

    def build(
        self,
        graphs: Sequence[Graph],
        target: Target,
        folder: Path,
        report: Report,
        tuning: Tuning | None = None,
    ) -> Build:
        """Lower, compile and write `lib.so`, the packed weights and `program.json`.

        `graphs` are one model at several shapes of its inputs; what is told is of the first.
        Raises CannotLower where a node can run neither here nor in onnxruntime, and
        UnusableInput where `tuning` asks to measure kernels that this CPU cannot run.
        """
        isa = isa_of(target)
        report("lowering")
        if tuning is not None:
            _check_measurable(isa)
            tuning = replace(tuning, seconds=tuning.seconds / len(graphs))
        pool = Pool()
        lowered = []
        for graph in map(in_floats, graphs):
            program = _lowered(graph, target, isa, tuning, folder, report)
            lowered.append(Lowered(program, segments(program), graph, pool.take(program)))
        written = write_files(lowered, pool, target, isa, STORAGE, folder, report)
        first = lowered[0].program
        return Build(
            layers=tuple(first.layers),
            islands=tuple(first.islands),
            stored_bytes=written.stored_bytes,
            details={
                "isa": isa.name,
                "calls": str(len(first.steps)),
                "arena_bytes": str(written.arena_bytes),
            },
        )

    def find_device(self, asked: str | None) -> str:
        """Return HOST. Raises UnusableInput where another device was asked for."""
        if asked not in (None, HOST):
            raise UnusableInput(
                f'--device {asked}: artifacts for cpu run on "{HOST}", this machine. '
                "Leave the option out, or compile for arm-edge."
            )
        return HOST

    def load(
        self, folder: Path, threads: int | None = None, device: str | None = None
    ) -> CpuProgram:
        """Return a function from feeds to outputs; calls from several threads take turns."""
        self.find_device(device)
        return CpuProgram(folder, threads)

    def estimate(self, folder: Path, target: Target, report: Report) -> None:
        """Return None: this machine is timed."""

    def timer(self, folder: Path, feeds: Feeds, threads: int, device: str) -> None:
        """Return None: what runs on HOST is timed beside other engines, a process each."""

    def steps(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        feeds: Feeds,
        threads: int,
        device: str = HOST,
    ) -> Steps:
        """Build a model so that each of its kernels, and what onnxruntime runs, is timed.

        Raises CannotLower, and UnusableInput where this CPU cannot run the kernels.
        """
        isa, graph = isa_of(target), in_floats(graph)
        _check_measurable(isa)
        program = _lowered(graph, target, isa, None, folder, silent)
        return build_steps(program, graph, target, isa, folder, threads, feeds)

    def boards(self, device: str) -> int:
        """Return 1: this machine."""
        return 1


def _lowered(
    graph: Graph,
    target: Target,
    isa: Isa,
    tuning: Tuning | None,
    folder: Path,
    report: Report,
) -> Program:
    lower = lowering_of(graph, target, isa, report)
    if tuning is None:
        return lower(estimated)
    return lower(tuned(lower, graph, target, isa, tuning, folder, report))


def isa_of(target: Target) -> Isa:
    """Return the instruction set that a target asks for, or the best that this CPU has."""
    wanted = str(target.settings.get("isa", "host"))
    tables: dict[str, dict[str, Any]] = target.settings["isas"]
    if wanted == "host":
        has = cpu_flags()
        runs = [name for name, table in tables.items() if has >= set(table["needs"])]
        if not runs:
            raise UnusableInput(
                f"Target {target.name} needs an x86-64 CPU with AVX2 and FMA; this one has "
                f"none of {sorted(tables)}. Compile for another target."
            )
        wanted = runs[0]
    if wanted not in tables:
        raise UnusableInput(
            f'Target {target.name} asks for isa "{wanted}"; it describes {sorted(tables)}. '
            "Add a table [isas.NAME], or take one of these."
        )
    table = tables[wanted]
    return Isa(
        name=wanted,
        mcpu=table["mcpu"],
        lanes=table["lanes_fp32"],
        registers=table["registers"],
        dot=table["dot"],
        features=tuple(table["features"]),
        needs=tuple(table["needs"]),
    )


def _check_measurable(isa: Isa) -> None:
    if missing := set(isa.needs) - cpu_flags():
        raise UnusableInput(
            f'Kernels for isa "{isa.name}" cannot be measured here: this CPU lacks '
            f"{sorted(missing)}. Measure on such a CPU, or compile with --tune 0, which "
            "estimates."
        )
