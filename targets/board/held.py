"""A board that is held: artifacts are opened, run and timed there, each call within a limit."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from tilewright.errors import DeviceFailed, UnusableInput
from tilewright.targets.board.place import QEMU, TRACKER, Place

# How a call of the worker's ended: well, refused by the board's programs, without a board, or
# not at all.
DONE, REFUSED, ABSENT, FAILED = "done", "refused", "absent", "failed"
INDICES = "indices.bin"  # of an artifact: on a board it is mapped, so it is not compressed
CALL_SECONDS = 600.0
_CONNECT_SECONDS = 60.0
_QUEUE_SECONDS = 3600.0  # while a fleet's boards are at work for others


class Emulation(NamedTuple):
    """What an emulator needs: the CPU that it is to be, and where that one's libraries are."""

    cpu: str
    sysroot: str


class HeldBoard:
    """A session on a board. The methods raise DeviceFailed; UnusableInput where it refuses."""

    def __init__(
        self, place: Place, process: "subprocess.Popen[bytes]", pipe: Connection
    ) -> None:
        """Take over a worker's process, and the pipe to it."""
        self.place = place
        self.name = str(place)
        self.works = True
        self._unused: list[int] = []
        self._turn = threading.Lock()  # calls from several threads
        self._pipe = pipe
        # When nobody uses it any more, and when Python ends.
        self._close = weakref.finalize(self, _end, process)

    def open(self, folder: Path, outputs: Sequence[str], threads: int) -> int:
        """Load an artifact; return its number there."""
        while self._unused:
            self._call("close", self._unused.pop())
        number: int = self._call("open", folder, list(outputs), threads)
        return number

    def close(self, number: int) -> None:
        """Note that an artifact is not used any more: it goes before the next one is opened.

        Python may call this in the middle of a call to the board, which it must not wait for.
        """
        self._unused.append(number)

    def threads(self, number: int) -> int:
        """Return how many threads an artifact takes there."""
        found: int = self._call("threads", number)
        return found

    def run(self, number: int, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        found: dict[str, np.ndarray] = self._call("run", number, dict(feeds))
        return found

    def time(self, number: int, repeats: int) -> tuple[int, ...]:
        """Return nanoseconds of so many runs on the latest inputs, by the board's clock."""
        return tuple(self._call("time", number, repeats))

    def time_parts(self, number: int) -> list[int]:
        """Return nanoseconds of each part, in one run on the latest inputs."""
        found: list[int] = self._call("time_parts", number)
        return found

    def connect(self, *arguments: Any) -> None:
        """Say where to, and wait until the board answers."""
        self._pipe.send((self.place, *arguments))
        fleet = self.place.kind == TRACKER
        seconds = _QUEUE_SECONDS if fleet else _CONNECT_SECONDS
        found: str = self._answer("waiting for a board" if fleet else "connecting", seconds)
        if fleet:
            self.name = f"{found} of {self.place}"

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._turn:
            if not self.works:
                raise self._failed("it was given up before")
            try:
                self._pipe.send((method, *arguments))
                return self._answer(method, CALL_SECONDS)
            except (DeviceFailed, UnusableInput):
                raise
            except BaseException as error:
                # Its answer would be taken for that to the next question.
                failed = self._failed(f'"{method}" was interrupted')
                if isinstance(error, Exception):
                    raise failed from error
                raise

    def _answer(self, doing: str, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise self._failed(f'it did not answer to "{doing}" within {seconds:.0f} s')
        try:
            outcome, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._failed(f'the connection ended at "{doing}"') from None
        if outcome == REFUSED:
            raise UnusableInput(value)
        if outcome == ABSENT:
            self._let_go()
            raise DeviceFailed(value)
        if outcome == FAILED:
            raise self._failed(f'"{doing}" ended with: {value}')
        return value

    def _failed(self, what: str) -> DeviceFailed:
        """Let the board go, whatever it is doing, and return what is to be raised."""
        self._let_go()
        return DeviceFailed(
            f"Device {self.name}: {what}. Check that the board is up and that its server "
            "runs, and try again."
        )

    def _let_go(self) -> None:
        self.works = False
        self._close()


def board_of_thread(place: Place, programs: Path, emulation: Emulation) -> HeldBoard:
    """Return the board that this thread holds at a place; it takes one where it has none.

    `programs` is the folder of `board_programs`. A board serves one session at a time, so what
    a thread does there shares it; threads at a fleet have a board each. Raises DeviceFailed
    where none can be had.
    """
    # A board is what it is; in the emulator each CPU is another one.
    its = emulation if place.kind == QEMU else None
    key = (threading.get_ident(), place, programs, its)
    board = _BOARDS.get(key)
    if board is None or not board.works:
        board = _BOARDS[key] = _take(place, programs, emulation)
    return board


def _take(place: Place, programs: Path, emulation: Emulation) -> HeldBoard:
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-P", "-m", "tilewright.targets.board.worker"]
        process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            # Ctrl-C is for this process, which then ends the worker and its emulator.
            start_new_session=True,
        )
    board = HeldBoard(place, process, ours)
    board.connect(programs, *emulation)
    return board


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a worker, and the emulator that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Those that are in use somewhere.
_BOARDS: "WeakValueDictionary[tuple[Any, ...], HeldBoard]" = WeakValueDictionary()
