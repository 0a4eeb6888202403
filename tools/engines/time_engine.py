"""Time one engine in this process, round by round, as another process asks for it.

Started as `python -P time_engine.py OF_ENGINE.py MODEL FEEDS.npz THREADS`, in an environment
that may have no more than numpy and the engine. Each line on stdin asks for a round of so many
seconds; each line on stdout is JSON: {"samples_ns": [...]}, or {"error": ...} as the last one.
The first line says {"ready": the engine's version}.
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType

import numpy as np

LEAST_CALLS, MOST_CALLS = 2, 2000


def time_round(
    call: Callable[[], object],
    seconds: float,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[int]:
    """Time calls until so many seconds are over; at least two, and no more than are of use."""
    taken: list[int] = []
    total = 0
    while len(taken) < LEAST_CALLS or (total < seconds * 1e9 and len(taken) < MOST_CALLS):
        start = clock_ns()
        call()
        taken.append(clock_ns() - start)
        total += taken[-1]
    return taken


def main(argv: list[str]) -> None:
    """Answer the rounds that stdin asks for."""
    file, model, feeds_file, threads = argv
    # Engines print what they like; the answers keep the real stdout for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(line: dict[str, object]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        with np.load(feeds_file, allow_pickle=False) as stored:
            feeds = dict(stored)
        engine = _module(file)
        run = engine.open_engine(model, int(threads))
        run(feeds)
    except Exception as error:
        answer({"error": _told(error)})
        return
    answer({"ready": engine.version()})
    for line in sys.stdin:
        answer({"samples_ns": time_round(lambda: run(feeds), float(line))})


def _told(error: Exception) -> str:
    """Return an error's text; whole sentences if tilewright raised it, else with its kind."""
    ours = type(error).__module__.partition(".")[0] == "tilewright"
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine", file)
    assert spec is not None, f"{file} is no Python file"
    assert spec.loader is not None, f"{file} is no Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1:])
