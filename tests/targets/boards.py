"""What the tests of boards share: builds for Arm, run in the emulator where there is one."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tilewright.graph import Graph
from tilewright.protocol import silent
from tilewright.target import Target, read_target
from tilewright.targets import FOLDER
from tilewright.targets.arm import ArmBackend
from tilewright.targets.board.held import Emulation, HeldBoard, board_of_thread
from tilewright.targets.board.make import SERVER, board_programs
from tilewright.targets.board.place import QEMU, Place

TRIPLE = "aarch64-linux-gnu"
A76, A72, N1 = (
    read_target(FOLDER / f"{name}.toml")
    for name in ("arm-edge", "arm-edge-a72", "arm-edge-neoverse-n1")
)
every_target = pytest.mark.parametrize("target", [A76, A72, N1], ids=lambda t: t.name)

_TOOLS = ("qemu-aarch64", f"{TRIPLE}-g++")
_MISSING = [tool for tool in _TOOLS if shutil.which(tool) is None]
emulated = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {_MISSING}")
modelled = pytest.mark.skipif(
    bool(_MISSING) or shutil.which("llvm-mca-19") is None,
    reason=f"not installed: {_MISSING or 'llvm-19'}",
)
tracked = pytest.mark.skipif(
    bool(_MISSING) or importlib.util.find_spec("tornado") is None,
    reason=f"not installed: {_MISSING or 'the extra [fleet]'}",
)


def emulators() -> list[HeldBoard]:
    """Return a board of each kind that this thread holds: what it loads there starts none."""
    programs = board_programs(TRIPLE, silent)
    cpus = ("cortex-a76", "cortex-a72", "neoverse-n1")
    return [
        board_of_thread(Place(QEMU), programs, Emulation(cpu, f"/usr/{TRIPLE}")) for cpu in cpus
    ]


def built(graph: Graph, target: Target, folder: Path) -> Path:
    """Build into a folder that holds what an artifact does."""
    folder.mkdir(exist_ok=True)
    ArmBackend().build([graph], target, folder, silent)
    return folder


def in_emulator(program: str, *arguments: str, cpu: str = "cortex-a76") -> list[str]:
    """Return the command that runs one of the board's programs here."""
    path = str(board_programs(TRIPLE, silent) / program)
    return ["qemu-aarch64", "-L", f"/usr/{TRIPLE}", "-cpu", cpu, path, *arguments]


@contextmanager
def server(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Start a board's server; give its process and its port."""
    options = ("--host", "127.0.0.1", "--port", "0", *arguments)
    process = subprocess.Popen(
        in_emulator(SERVER, *options),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None, "it was started with a pipe"
    try:
        yield process, int(process.stdout.readline().split()[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
