"""The process that talks to a board, by TVM RPC, and does nothing else.

Its parent may end it at any time: RPC waits for ever where a board hangs. It takes calls from a
pipe, as (name of a method, arguments), and answers with (outcome, value).
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import rpc

from tilewright.errors import DeviceFailed
from tilewright.targets.board.greeting import check_server
from tilewright.targets.board.held import ABSENT, DONE, FAILED, INDICES, REFUSED
from tilewright.targets.board.make import LIBRARY, SERVER
from tilewright.targets.board.place import QEMU, RPC, TRACKER, Place
from tilewright.targets.board.tracker import request_board
from tilewright.targets.program_files import LIBRARY as KERNELS
from tilewright.targets.program_files import PROGRAM, REST, WEIGHTS

_FILES = (KERNELS, WEIGHTS, INDICES, REST, PROGRAM)
_LOCAL = "127.0.0.1"
# What an error of the board's own programs begins with; what follows is for users.
_REFUSAL = "Error caught from RPC call:\n"


class Worker:
    """A session on a board, and the artifacts that are loaded there."""

    def __init__(self, place: Place, programs: Path, cpu: str, sysroot: str) -> None:
        """Connect. An emulator of a `cpu` is started for that."""
        if place.kind == QEMU:
            place = place._replace(port=_emulated(programs, cpu, sysroot, place.key))
        fleet = place if place.kind == TRACKER else None
        place = request_board(fleet) if fleet else place
        self.name = f"{RPC}://{place.host}:{place.port}"
        self._session = _connected(place, fleet)
        self._session.upload(str(programs / LIBRARY))
        self._library = self._session.load_module(LIBRARY)
        self._folder = self._session.get_function("tvm.rpc.server.workpath")
        self._count = 0
        self._outputs: dict[int, list[str]] = {}
        self._files: dict[int, list[str]] = {}

    def open(self, folder: Path, outputs: list[str], threads: int) -> int:
        """Load an artifact; return its number."""
        number, self._count = self._count, self._count + 1
        # A model of nothing but views has no kernels.
        names = [name for name in _FILES if (folder / name).is_file()]
        self._files[number] = [f"{number}.{name}" for name in names]
        for name, file in zip(names, self._files[number], strict=True):
            self._session.upload(str(folder / name), file)
        self._library["open"](number, self._folder(f"{number}."), threads)
        self._outputs[number] = outputs
        return number

    def close(self, number: int) -> None:
        """Let an artifact go, and its files."""
        self._library["close"](number)
        for file in self._files.pop(number):
            self._session.remove(file)

    def threads(self, number: int) -> int:
        """Return how many threads an artifact takes there."""
        return int(self._library["threads"](number))

    def run(self, number: int, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        for name, value in feeds.items():
            self._library["feed"](number, name, self._there(value))
        self._library["run"](number)
        return {
            name: self._library["answer"](number, name).numpy()
            for name in self._outputs[number]
        }

    def time(self, number: int, repeats: int) -> list[int]:
        """Return nanoseconds of so many runs on the latest inputs, by the board's clock."""
        return _numbers(self._library["time"](number, repeats))

    def time_parts(self, number: int) -> list[int]:
        """Return nanoseconds of each part in one run on the latest inputs."""
        return _numbers(self._library["time_parts"](number))

    def _there(self, value: np.ndarray) -> Any:
        return tvm.runtime.tensor(np.asarray(value, order="C"), self._session.cpu())


def _connected(place: Place, fleet: Place | None) -> Any:
    """Return a session. Raises DeviceFailed where it can be told why there is none."""
    try:
        return rpc.connect(place.host, place.port, key=place.key)
    except Exception as error:
        if fleet is None:
            check_server(place)
            raise
        # The board's key is a password of the tracker's, which says nothing to users.
        raise DeviceFailed(
            f"Device {fleet}: {RPC}://{place.host}:{place.port}, which the tracker gave, does "
            "not answer. Check that it is up, and that this machine reaches it; or try "
            "again, for another one."
        ) from error


def _numbers(joined: str) -> list[int]:
    return [int(each) for each in joined.split(",") if each]


def _emulated(programs: Path, cpu: str, sysroot: str, key: str) -> int:
    """Start a server in an emulator; return its port. It ends with this process's group."""
    if not Path(sysroot).is_dir():
        raise RuntimeError(
            f"QEMU needs the libraries of the board's system in {sysroot}: "
            "apt-get install g++-aarch64-linux-gnu"
        )
    command = ["qemu-aarch64", "-L", sysroot, "-cpu", cpu, str(programs / SERVER)]
    command += ["--host", _LOCAL, "--port", "0", "--key", key]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None, "the server was started with a pipe"
    line = process.stdout.readline()
    if not line.startswith("READY "):
        raise DeviceFailed(
            f"Device qemu: `qemu-aarch64 -cpu {cpu}` ended with exit code {process.wait()} "
            "before the board's server was ready. Correct qemu_cpu in the target's .toml "
            "(`qemu-aarch64 -cpu help` lists them), or install a newer QEMU."
        )
    return int(line.split()[1])


def _answer(worker: Worker, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return DONE, getattr(worker, method)(*arguments)
    except Exception as error:
        _, refused, sentence = str(error).partition(_REFUSAL)
        if refused:
            return REFUSED, sentence.strip()
        return FAILED, " ".join(str(error).split())[-400:]


def main(pipe: int, parent: int) -> None:
    """Serve the calls that come through a pipe, until its other end is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    calls = Connection(pipe)
    try:
        _serve(calls)
    finally:
        # The emulator goes, too: it is in this group, which the parent began for it.
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _end_with(parent: int) -> None:
    """End this group once the process that began it is gone, even in a call that hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _serve(calls: Connection) -> None:
    place, programs, cpu, sysroot = calls.recv()
    try:
        worker = Worker(place, programs, cpu, sysroot)
    except DeviceFailed as error:
        calls.send((ABSENT, str(error)))
        return
    except Exception as error:
        calls.send((FAILED, " ".join(str(error).split())[-400:]))
        return
    calls.send((DONE, worker.name))
    with contextlib.suppress(EOFError):
        while True:
            method, *arguments = calls.recv()
            calls.send(_answer(worker, method, tuple(arguments)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
