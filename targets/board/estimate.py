"""Estimate cycles without a board: what QEMU counts, times what LLVM's model of the core says.

How often each block of the code runs in one inference is exact: an emulator counts it. How many
cycles a block takes is the model's: llvm-mca schedules it over and over, with all data in the
first-level cache. Two simulated caches say how many lines have to be moved, at the bandwidth of
streams that are fetched ahead in time. A kernel takes as long as the busiest of the three: the
core, the way from the second cache, the way from memory. No clock is involved, nothing waits
for what could be known before, and nothing outside the library is counted: boards take longer.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
_NAMES_A_PLACE = re.compile(r"(bl?|b\.\w+|cbn?z|tbn?z|adrp?|ldr|ldrsw|prfm) ")

Block = tuple[int, int]  # offset in the library, instructions


class Core(NamedTuple):
    """The model of a core: LLVM's name for it, and caches as (KiB, ways, cycles a miss)."""

    llvm_mca_cpu: str
    l1: tuple[int, int, float]
    l2: tuple[int, int, float]

    def __str__(self) -> str:
        return f"llvm-mca's {self.llvm_mca_cpu} and simulated caches"


class Count(NamedTuple):
    """What a block does in one inference: how often it runs, and the lines its caches miss."""

    times: int
    l1_misses: int
    l2_misses: int

    def plus(self, other: "Count") -> "Count":
        """Return the sum of both."""
        return Count(*map(int.__add__, self, other))


class KernelCycles(NamedTuple):
    """What one inference spends in a kernel by the model, in cycles."""

    core: float
    from_l2: float
    from_memory: float
    instructions: int

    @property
    def total(self) -> float:
        """The busiest of the three."""
        return max(self.core, self.from_l2, self.from_memory)

    def plus(self, other: "KernelCycles") -> "KernelCycles":
        """Return the sum of both."""
        return KernelCycles(
            self.core + other.core,
            self.from_l2 + other.from_l2,
            self.from_memory + other.from_memory,
            self.instructions + other.instructions,
        )


NOTHING = KernelCycles(0.0, 0.0, 0.0, 0)


def missing_tools() -> str:
    """Return what has to be installed for an estimate; nothing where all is there."""
    missing = [] if shutil.which("qemu-aarch64") else ["qemu-user"]
    missing += [] if _llvm("llvm-mca") and _llvm("llvm-objdump") else ["llvm-19"]
    missing += [] if any(map(shutil.which, ("cc", "gcc", "clang"))) else ["gcc"]
    return " ".join(missing)


def estimate_cycles(
    artifact: Path, programs: Path, emulation: Emulation, core: Core
) -> dict[str, KernelCycles]:
    """Return what one inference of an artifact takes in each function, inputs being zeros.

    `programs` is the folder of `board_programs`. Raises UnusableInput where a tool fails.
    """
    counts = count_inference(artifact, programs, emulation, core)
    code = disassemble(artifact / LIBRARY)
    blocks = list(counts)
    cycles = block_cycles([code.block(block) for block in blocks], core.llvm_mca_cpu)
    found: dict[str, KernelCycles] = {}
    for block, each in zip(blocks, cycles, strict=True):
        times, l1_misses, l2_misses = counts[block]
        taken = KernelCycles(
            each * times, core.l1[2] * l1_misses, core.l2[2] * l2_misses, block[1] * times
        )
        function = code.function_of(block)
        found[function] = found.get(function, NOTHING).plus(taken)
    return found


def count_inference(
    artifact: Path, programs: Path, emulation: Emulation, core: Core
) -> dict[Block, Count]:
    """Count what an inference executes, the second of a process: caches are warm."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        plugin, out = Path(folder) / "count.so", Path(folder) / "counts.txt"
        options = ["-O2", "-shared", "-fPIC", f"-DPLUGIN_VERSION={_plugin_version()}"]
        Toolchain().run("gcc", str(plugin), [*options, str(_SOURCE)])
        levels = (f"l{i}={_sets(*level)}" for i, level in enumerate(core[1:], start=1))
        # Commas are QEMU's own; two of them are one that is meant.
        library = str((artifact / LIBRARY).resolve()).replace(",", ",,")
        told = ",".join([str(plugin), f"library={library}", f"out={out}", *levels])
        command = ["qemu-aarch64", "-L", emulation.sysroot, "-cpu", emulation.cpu]
        command += ["-plugin", told, str(programs / RUNNER), str(artifact.resolve())]
        _output([*command, "--threads", "1", "--repeat", "1"])
        counts = _read_counts(out)
    found = {block: count for block, count in counts.items() if count.times}
    if not found:
        raise UnusableInput(
            f"Estimating cycles failed: QEMU ran nothing of {artifact / LIBRARY}. Compile with "
            "--no-estimate."
        )
    return found


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


def as_json(
    functions: Mapping[str, KernelCycles], core: Core, nodes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what is written into an artifact; `nodes` says what each kernel runs."""
    kernels: dict[str, KernelCycles] = {}
    for function, each in functions.items():
        # What threads run of a kernel is a function beside its own, named after it.
        name = next((name for name in nodes if function.startswith(name)), function)
        kernels[name] = kernels.get(name, NOTHING).plus(each)
    return {
        "model": f"{core}, one core",
        "cycles": round(sum(each.total for each in kernels.values())),
        "kernels": [
            {
                "name": name,
                "nodes": list(nodes.get(name, ())),
                "cycles": round(each.total),
                "core_cycles": round(each.core),
                "from_l2_cycles": round(each.from_l2),
                "from_memory_cycles": round(each.from_memory),
                "instructions": each.instructions,
            }
            for name, each in sorted(kernels.items(), key=lambda item: -item[1].total)
        ],
    }


def _read_counts(file: Path) -> dict[Block, Count]:
    found: dict[Block, Count] = {}
    for line in file.read_text(encoding="ascii").splitlines():
        if line == "end":
            return found
        offset, instructions, *counts = line.split()
        block = int(offset, 16), int(instructions)
        # A block that was translated twice is one.
        found[block] = found.get(block, Count(0, 0, 0)).plus(Count(*map(int, counts)))
    raise UnusableInput(f"QEMU's plugin did not finish {file}: it was stopped meanwhile.")


def _sets(kib: int, ways: int, _cycles: float) -> str:
    return f"{kib * 1024 // (_LINE_BYTES * ways)}:{ways}"


def _plugin_version() -> int:
    """Return the version of QEMU's plugin interface: what is used of it is in all of them."""
    found = re.search(r"version (\d+)", _output(["qemu-aarch64", "--version"]))
    return 1 if found and int(found[1]) < 9 else 2


def _llvm(tool: str) -> str:
    """Return the path of a tool of LLVM's; nothing where it is not installed."""
    names: Iterator[str] = (f"{tool}-{version}" for version in _LLVM)
    return next((path for name in names if (path := shutil.which(name))), "")


def _output(command: Sequence[str], given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnusableInput(
            f"Estimating cycles failed: `{' '.join(command)[:300]}` said: "
            f"{done.stderr.strip()[-400:]}. Compile with --no-estimate, or with a newer QEMU "
            "and LLVM."
        )
    return done.stdout
