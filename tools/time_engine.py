"""Time one engine in this process, round by round, as another process asks for it.

Started as `python -m tilewright.tools.time_engine ENGINE MODEL FEEDS.npz THREADS`. Each line on
stdin asks for a round of so many seconds; each line on stdout is JSON: {"samples_ns": [...]},
or {"error": ...} as the last one. The first line says {"ready": true}.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.measurement import Samples
from tilewright.tools.engines import open_engine

LEAST_CALLS, MOST_CALLS = 2, 2000


def time_round(
    call: Callable[[], object],
    seconds: float,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Time calls until so many seconds are over; at least two, and no more than are of use."""
    taken: list[int] = []
    total = 0
    while len(taken) < LEAST_CALLS or (total < seconds * 1e9 and len(taken) < MOST_CALLS):
        start = clock_ns()
        call()
        taken.append(clock_ns() - start)
        total += taken[-1]
    return Samples(tuple(taken))


def main(argv: list[str]) -> None:
    """Answer the rounds that stdin asks for."""
    engine, model, feeds_file, threads = argv
    # Engines print what they like; the answers keep the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(line: dict[str, object]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        with np.load(feeds_file, allow_pickle=False) as stored:
            feeds = dict(stored)
        run = open_engine(engine, Path(model), int(threads) or None)
        run(feeds)
    except TilewrightError as error:
        answer({"error": str(error)})
        return
    answer({"ready": True})
    for line in sys.stdin:
        answer({"samples_ns": time_round(lambda: run(feeds), float(line)).samples_ns})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1:])
