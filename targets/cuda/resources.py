"""What compiled kernels use: registers, shared memory and spills, as ptxas tells them."""

import re
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class Resources(NamedTuple):
    """What one kernel uses: registers of a thread, shared memory of a block, bytes spilled."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


def parse_ptxas(log: str) -> dict[str, Resources]:
    """Read what `ptxas -v` (or nvcc or NVRTC, which hand it on) says of each kernel.

    Spills are bytes of stores and loads together.
    """
    found: dict[str, Resources] = {}
    name, stack = "", (0, 0, 0)
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, stack = entry[1], (0, 0, 0)
        elif frame := _STACK.search(line):
            stack = (int(frame[1]), int(frame[2]), int(frame[3]))
        elif (used := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            found[name] = Resources(
                int(used[1]), int(shared[1]) if shared else 0, stack[0], stack[1] + stack[2]
            )
    return found
