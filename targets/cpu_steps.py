"""Build a program with a part for each of its steps, so that each of them can be timed."""

from functools import partial
from pathlib import Path

from tilewright.graph import Graph
from tilewright.protocol import Feeds, Steps, silent
from tilewright.target import Target
from tilewright.targets.cpu_program import STORAGE, CpuProgram
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.program import Call, Part, Pool, Program, nodes_of
from tilewright.targets.program_files import Lowered, write_files


def build_steps(
    program: Program,
    graph: Graph,
    target: Target,
    isa: Isa,
    folder: Path,
    threads: int,
    feeds: Feeds | None = None,
) -> Steps:
    """Write a program into `folder` and load it; without feeds it is timed on any inputs."""
    pool = Pool()
    parts: list[Part] = [[s] if isinstance(s, Call) else s for s in program.steps]
    lowered = Lowered(program, parts, graph, pool.take(program))
    write_files([lowered], pool, target, isa, STORAGE, folder, silent)
    loaded = CpuProgram(folder, threads)
    return Steps(nodes_of(parts), partial(loaded.time_parts, feeds))
