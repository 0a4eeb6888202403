"""Greet a board's RPC server as a client does: is it there, and is the key its own?"""

import contextlib
import socket
import struct

from tilewright.errors import DeviceFailed
from tilewright.targets.board.place import Place

# As in TVM's python/tvm/rpc/base.py.
_MAGIC, _MISMATCH = 0xFF271, 0xFF271 + 2
_NUMBER = struct.Struct("<i")
_SECONDS = 5.0


def check_server(place: Place) -> None:
    """Raise DeviceFailed where no server answers, or one with another key.

    A server that is at work for somebody else does not answer yet, and may be the right one.
    """
    key = f"client:{place.key}".encode()
    try:
        with socket.create_connection((place.host, place.port), _SECONDS) as server:
            server.sendall(_NUMBER.pack(_MAGIC) + _NUMBER.pack(len(key)) + key)
            answer = b""
            with contextlib.suppress(TimeoutError):
                while len(answer) < _NUMBER.size:
                    piece = server.recv(_NUMBER.size - len(answer))
                    if not piece:
                        raise _failed(place, "what answers is no server of boards")
                    answer += piece
    except (OSError, ValueError) as error:  # a name that is none is a ValueError
        told = getattr(error, "strerror", None) or error
        raise _failed(place, f"there is no server ({told})") from error
    if answer == _NUMBER.pack(_MISMATCH):
        raise DeviceFailed(
            f'Device {place}: the server there has another key than "{place.key}". Give its '
            "own, as in rpc://HOST:PORT/KEY: the one that it was started with by --key. A "
            "board of a fleet is had from its tracker alone: --device tracker://HOST:PORT/KEY."
        )
    if answer not in (b"", _NUMBER.pack(_MAGIC)):
        raise _failed(place, "what answers is no server of boards")


def _failed(place: Place, what: str) -> DeviceFailed:
    return DeviceFailed(
        f"Device {place}: {what}. Start `tilewright-server --port {place.port} --key "
        f"{place.key}` on the board (`tilewright device build` makes it), or correct the "
        "address."
    )
