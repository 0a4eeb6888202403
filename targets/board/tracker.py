"""Ask a TVM tracker for a board of its fleet: JSON behind its length, over a socket."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

from tilewright.errors import DeviceFailed
from tilewright.targets.board.place import RPC, Place

# As in TVM's python/tvm/rpc/base.py.
_MAGIC, _SUCCESS, _REQUEST, _SUMMARY = 0x2F271, 0, 4, 6
_LENGTH = struct.Struct("<i")
_SECONDS = 10.0  # to connect, and for answers that need no board


def request_board(fleet: Place) -> Place:
    """Wait for a board of a fleet; its key is a password that is good once."""
    check_fleet(fleet)
    with _asking(fleet) as tracker:
        tracker.settimeout(None)
        code, *found = _ask(tracker, [_REQUEST, fleet.key, "", 1])
    if code != _SUCCESS:
        raise _failed(fleet, f"the tracker answered {code}")
    host, port, password = found[0]
    return Place(RPC, host, port, password)


def check_fleet(fleet: Place) -> None:
    """Raise DeviceFailed where there is no tracker, or none that ever had such a board."""
    with _asking(fleet) as tracker:
        _, summary = _ask(tracker, [_SUMMARY])
    keys = sorted(summary["queue_info"])
    if fleet.key not in keys:
        known = f"the keys are {', '.join(keys)}" if keys else "it knows of no board"
        raise DeviceFailed(
            f"Device {fleet}: the tracker never had a board with this key; {known}. Start "
            f"`tilewright-server --key {fleet.key} --tracker {fleet.host}:{fleet.port}` on "
            "a board, or correct the key."
        )


def free_boards(fleet: Place) -> int:
    """Return how many boards of a fleet wait for work. Raises DeviceFailed."""
    with _asking(fleet) as tracker:
        _, summary = _ask(tracker, [_SUMMARY])
    return int(summary["queue_info"].get(fleet.key, {}).get("free", 0))


@contextlib.contextmanager
def _asking(fleet: Place) -> Iterator[socket.socket]:
    try:
        with socket.create_connection((fleet.host, fleet.port), _SECONDS) as tracker:
            tracker.sendall(_LENGTH.pack(_MAGIC))
            if _LENGTH.unpack(_read(tracker, _LENGTH.size)) != (_MAGIC,):
                raise _failed(fleet, "what answers is no tracker")
            yield tracker
    except (OSError, ValueError) as error:
        raise _failed(fleet, f"there is no tracker ({error})") from error


def _ask(tracker: socket.socket, question: list[Any]) -> Any:
    text = json.dumps(question).encode()
    tracker.sendall(_LENGTH.pack(len(text)) + text)
    (size,) = _LENGTH.unpack(_read(tracker, _LENGTH.size))
    return json.loads(_read(tracker, size))


def _read(tracker: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        piece = tracker.recv(size - len(read))
        if not piece:
            raise ConnectionError("the connection ended")
        read += piece
    return read


def _failed(fleet: Place, what: str) -> DeviceFailed:
    return DeviceFailed(
        f"Device {fleet}: {what}. Start one with `python -m tvm.exec.rpc_tracker --host "
        f"0.0.0.0 --port {fleet.port} --port-end {fleet.port + 1}` (it needs the extra "
        "[fleet]), or correct the address."
    )
