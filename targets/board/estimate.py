"""Estimate cycles without a board: what QEMU counts, times what LLVM's model of the core says.

How often each block of the code runs in one inference is exact: an emulator counts it.
How many cycles a block takes is the model's: llvm-mca schedules it over and over, with all data
in the first-level cache. To that comes the time to move the lines that two simulated caches
miss, at the bandwidth of streams that are fetched ahead in time. No clock is involved, and
nothing outside the library is counted.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tilewright.errors import UnusableInput
from tilewright.targets.board.held import Emulation
from tilewright.targets.board.make import RUNNER
from tilewright.targets.link import Toolchain
from tilewright.targets.program_files import LIBRARY

_SOURCE = Path(__file__).parent / "count.c"
_LLVM = range(25, 18, -1)  # versions that leave out what they have no model of, latest first
_ITERATIONS = 100
_LINE_BYTES = 64
# Blocks are modelled until so much of all that is executed is; the rest takes as long.
_COVERED = 0.999
_NAMES_A_PLACE = re.compile(r"(bl?|b\.\w+|cbn?z|tbn?z|adrp?|ldr|ldrsw|prfm) ")

Block = tuple[int, int]  # offset in the library, instructions


class Core(NamedTuple):
    """The model of a core: LLVM's name for it, and caches as (KiB, ways, cycles a miss)."""

    llvm_mca_cpu: str
    l1: tuple[int, int, float]
    l2: tuple[int, int, float]

    def __str__(self) -> str:
        return f"llvm-mca's {self.llvm_mca_cpu} and simulated caches"


class Counts(NamedTuple):
    """What one inference executes: blocks, and lines that a level of cache misses."""

    times: Mapping[Block, int]
    l1_misses: int
    l2_misses: int


class Cycles(NamedTuple):
    """What one inference takes by the model, in cycles, and where."""

    core: float
    memory: float
    instructions: int
    functions: Mapping[str, float]  # core cycles

    @property
    def total(self) -> float:
        """All cycles."""
        return self.core + self.memory


def missing_tools() -> str:
    """Return what has to be installed for an estimate; nothing where all is there."""
    missing = [] if shutil.which("qemu-aarch64") else ["qemu-user"]
    missing += [] if _llvm("llvm-mca") and _llvm("llvm-objdump") else ["llvm-19"]
    return " ".join(missing)


def estimate_cycles(artifact: Path, programs: Path, emulation: Emulation, core: Core) -> Cycles:
    """Return what one inference of an artifact takes on one core, inputs being zeros.

    `programs` is the folder of `board_programs`. Raises UnusableInput where a tool fails.
    """
    counts = count_inference(artifact, programs, emulation, core)
    code = disassemble(artifact / LIBRARY)
    work = sorted(counts.times, key=lambda block: -block[1] * counts.times[block])
    everything = sum(block[1] * counts.times[block] for block in work)
    modelled, covered = [], 0
    for block in work:
        if covered >= _COVERED * everything:
            break
        modelled.append(block)
        covered += block[1] * counts.times[block]
    cycles = block_cycles([code.block(block) for block in modelled], core.llvm_mca_cpu)
    functions: dict[str, float] = defaultdict(float)
    for block, each in zip(modelled, cycles, strict=True):
        functions[code.function_of(block)] += each * counts.times[block] * everything / covered
    memory = counts.l1_misses * core.l1[2] + counts.l2_misses * core.l2[2]
    return Cycles(sum(functions.values()), memory, everything, dict(functions))


def count_inference(artifact: Path, programs: Path, emulation: Emulation, core: Core) -> Counts:
    """Count what an inference executes, once caches are warm: two runs less one."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        plugin = Path(folder) / "count.so"
        options = ["-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={_plugin_version()}"]
        Toolchain().run("gcc", str(plugin), [*options, str(_SOURCE)])

        def counted(runs: Sequence[str], out: Path) -> Counts:
            levels = (f"l{i}={_sets(*level)}" for i, level in enumerate(core[1:], start=1))
            library = (artifact / LIBRARY).resolve()
            told = ",".join([str(plugin), f"library={library}", f"out={out}", *levels])
            command = ["qemu-aarch64", "-L", emulation.sysroot, "-cpu", emulation.cpu]
            command += ["-plugin", told, str(programs / RUNNER), str(artifact.resolve())]
            _output([*command, "--threads", "1", *runs])
            return _read_counts(out)

        with ThreadPoolExecutor(2) as pool:
            twice = pool.submit(counted, ["--repeat", "1"], Path(folder) / "twice.txt")
            once = counted([], Path(folder) / "once.txt")
            both = twice.result()
    times = {
        block: count - once.times.get(block, 0)
        for block, count in both.times.items()
        if count > once.times.get(block, 0)
    }
    return Counts(times, both.l1_misses - once.l1_misses, both.l2_misses - once.l2_misses)


class Code:
    """A library's instructions by their offsets, and the functions that they are in."""

    def __init__(self, instructions: Mapping[int, str], functions: Mapping[int, str]) -> None:
        self._instructions = instructions
        self._functions = functions

    def block(self, block: Block) -> list[str]:
        """Return the instructions of a block."""
        offset, count = block
        return [self._instructions[offset + 4 * i] for i in range(count)]

    def function_of(self, block: Block) -> str:
        """Return the name of the function that a block is in."""
        return self._functions[block[0]]


def disassemble(library: Path) -> Code:
    """Read a library's instructions as llvm-mca takes them: no addresses in them."""
    tool = _llvm("llvm-objdump")
    instructions: dict[int, str] = {}
    functions: dict[int, str] = {}
    function = ""
    for line in _output([tool, "-d", "--no-show-raw-insn", str(library)]).splitlines():
        if named := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = named[1]
        elif found := re.match(r"\s*([0-9a-f]+):\s+(\S.*)", line):
            offset = int(found[1], 16)
            instructions[offset] = placeless(found[2])
            functions[offset] = function
    return Code(instructions, functions)


def placeless(instruction: str) -> str:
    """Return an instruction with a label in place of the address that it names."""
    text = re.sub(r"//.*|<.*?>", "", instruction.replace("\t", " ")).strip()
    if _NAMES_A_PLACE.match(text):
        text = re.sub(r" 0x[0-9a-f]+$", " label", text)
    return text


def block_cycles(blocks: Sequence[Sequence[str]], cpu: str) -> list[float]:
    """Return the cycles of each block that runs over and over, by LLVM's model of a core."""
    lines = ["label:"]
    for number, block in enumerate(blocks):
        lines += [f"# LLVM-MCA-BEGIN {number}", *block, "# LLVM-MCA-END"]
    command = [_llvm("llvm-mca"), "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-json"]
    command += ["-mattr=+dotprod,+fullfp16", f"-iterations={_ITERATIONS}"]
    # Atomic additions, a few in each kernel.
    command += ["-skip-unsupported-instructions=lack-sched"]
    report = json.loads(_output(command, "\n".join(lines) + "\n"))
    regions = {r["Name"]: r["SummaryView"]["TotalCycles"] for r in report["CodeRegions"]}
    return [regions[str(number)] / _ITERATIONS for number in range(len(blocks))]


def as_json(cycles: Cycles, core: Core, nodes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return what is written into an artifact; `nodes` says what each kernel runs."""
    kernels: dict[str, float] = defaultdict(float)
    for function, each in cycles.functions.items():
        # What threads run of a kernel is a function beside its own, named after it.
        kernels[next((name for name in nodes if function.startswith(name)), function)] += each
    return {
        "model": f"{core}, one core",
        "cycles": round(cycles.total),
        "core_cycles": round(cycles.core),
        "memory_cycles": round(cycles.memory),
        "instructions": cycles.instructions,
        "kernels": [
            {"name": name, "core_cycles": round(each), "nodes": list(nodes.get(name, ()))}
            for name, each in sorted(kernels.items(), key=lambda item: -item[1])
        ],
    }


def _read_counts(file: Path) -> Counts:
    times: Counter[Block] = Counter()
    for line in file.read_text(encoding="ascii").splitlines():
        first, *rest = line.split()
        if first == "accesses":
            return Counts(times, int(rest[2]), int(rest[4]))
        times[int(first, 16), int(rest[0])] += int(rest[1])
    raise UnusableInput(f"QEMU's plugin wrote no counts into {file}: it may have been stopped.")


def _sets(kib: int, ways: int, _cycles: float) -> str:
    return f"{kib * 1024 // (_LINE_BYTES * ways)}:{ways}"


def _plugin_version() -> int:
    """Return the version of QEMU's plugin interface: what is used of it is in all of them."""
    found = re.search(r"version (\d+)", _output(["qemu-aarch64", "--version"]))
    return 1 if found and int(found[1]) < 9 else 2


def _llvm(tool: str) -> str:
    """Return the path of a tool of LLVM's; nothing where it is not installed."""
    names: Iterator[str] = (f"{tool}-{version}" for version in _LLVM)
    return next((path for name in (*names, tool) if (path := shutil.which(name))), "")


def _output(command: Sequence[str], given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnusableInput(
            f"Estimating cycles failed: `{' '.join(command)[:300]}` said: "
            f"{done.stderr.strip()[-400:]}. Check that the versions of QEMU and LLVM are "
            "those of a current distribution."
        )
    return done.stdout
