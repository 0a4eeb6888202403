"""A board that is held: artifacts are opened, run and timed there, each call within a limit."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.targets.board.place import Place

# How a call of the worker's ended: well, refused by the board's programs, or not at all.
DONE, REFUSED, FAILED = "done", "refused", "failed"
INDICES = "indices.bin"  # of an artifact: on a board it is mapped, so it is not compressed
CALL_SECONDS = 600.0
_CONNECT_SECONDS = 60.0


class BoardFailed(UnusableInput):
    """A board went away, hangs or crashed; another one may do what it was asked to."""


class Emulation(NamedTuple):
    """What an emulator needs: the CPU that it is to be, and where that one's libraries are."""

    cpu: str
    sysroot: str


class HeldBoard:
    """A session on a board. The methods raise BoardFailed; UnusableInput where it refuses."""

    def __init__(
        self, place: Place, process: "subprocess.Popen[bytes]", pipe: Connection
    ) -> None:
        """Take over a worker's process, and the pipe to it."""
        self.place = place
        self._process = process
        self._pipe = pipe

    def open(self, folder: Path, outputs: Sequence[str], threads: int) -> int:
        """Load an artifact; return its number there."""
        number: int = self._call("open", folder, list(outputs), threads)
        return number

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
        self._answer("connecting", _CONNECT_SECONDS)

    def close(self) -> None:
        """Let the board go, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((method, *arguments))
        except OSError as error:
            raise self._failed(f"it was given up before ({error.strerror})") from error
        return self._answer(method, CALL_SECONDS)

    def _answer(self, doing: str, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            self.close()
            raise self._failed(f'it did not answer to "{doing}" within {seconds:.0f} s')
        try:
            outcome, value = self._pipe.recv()
        except EOFError:
            raise self._failed(f'the connection ended at "{doing}"') from None
        if outcome == REFUSED:
            raise UnusableInput(value)
        if outcome == FAILED:
            raise self._failed(f'"{doing}" ended with: {value}')
        return value

    def _failed(self, what: str) -> BoardFailed:
        return BoardFailed(
            f"Device {self.place}: {what}. Check that the board is up and that its server "
            "runs, and try again."
        )


@contextlib.contextmanager
def hold(place: Place, programs: Path, emulation: Emulation) -> Iterator[HeldBoard]:
    """Hold a board, or the emulator, for as long as the context lasts.

    `programs` is the folder of `board_programs`. Raises BoardFailed where it cannot be had.
    """
    ours, theirs = Pipe()
    with theirs:
        command = [sys.executable, "-P", "-m", "tilewright.targets.board.worker"]
        process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            # Ctrl-C is for this process, which then ends the worker and its emulator.
            start_new_session=True,
        )
    board = HeldBoard(place, process, ours)
    try:
        board.connect(programs, *emulation)
        yield board
    finally:
        board.close()
