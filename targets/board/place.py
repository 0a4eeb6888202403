"""Where artifacts run that are not for this machine: what --device says."""

import shutil
from typing import NamedTuple
from urllib.parse import urlsplit

from tilewright.errors import UnusableInput

QEMU, RPC, TRACKER = "qemu", "rpc", "tracker"
_PORTS = {RPC: 9090, TRACKER: 9190}
_KEY = "tilewright"


class Place(NamedTuple):
    """A board, the fleet behind a tracker, or an emulator on this machine.

    `kind` is "rpc", "tracker" or "qemu"; `key` is what a server was started with.
    """

    kind: str
    host: str = "127.0.0.1"
    port: int = 0
    key: str = _KEY

    def __str__(self) -> str:
        if self.kind == QEMU:
            return QEMU
        return f"{self.kind}://{self.host}:{self.port}/{self.key}"


def parse_place(text: str | None) -> Place:
    """Read what --device says; nothing is the emulator. Raises UnusableInput."""
    if text is None:
        if shutil.which("qemu-aarch64") is None:
            raise UnusableInput(
                "There is nothing to check the artifact on: no --device is given, and "
                "qemu-aarch64 is not installed. Give --device rpc://HOST:PORT of a board that "
                "runs tilewright-server (`tilewright device build` makes it), or "
                "`apt-get install qemu-user g++-aarch64-linux-gnu`."
            )
        return Place(QEMU)
    if text == QEMU:
        return parse_place(None)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    key = parts.path.strip("/")
    if parts.scheme not in _PORTS or not parts.hostname or "/" in key:
        raise UnusableInput(
            f"--device {text}: write qemu, rpc://HOST:PORT/KEY of a board's server, or "
            "tracker://HOST:PORT/KEY of a fleet. Without a port it is "
            f"{_PORTS['rpc']}, or {_PORTS['tracker']} of a tracker; without a key {_KEY}."
        )
    return Place(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], key or _KEY)
