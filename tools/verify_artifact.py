"""Verify an artifact: its answers against those of the models that it came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright import oracle
from tilewright.errors import CheckFailed
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.protocol import Executable
from tilewright.verify import Difference, Outputs, compare, shaken

# Our kernels and onnxruntime's add up in different orders; float32 networks then differ by up
# to 1e-4 of their largest output. A wrong kernel differs by far more than this.
AGREES = 1e-3
# Where a model rounds to integers, a sum that falls on the other side of a half moves a value
# by a whole step, and later layers may make much of it. What a shaken copy of the model differs
# by says how much; of chance, a few times that.
_TIMES_SHAKEN, _MOST_SHAKEN = 3.0, 0.5


def verify_artifact(
    against: Mapping[str, Graph | Path],
    executable: Executable,
    feeds: Sequence[dict[str, np.ndarray]],
    allowed: float,
) -> dict[str, Any]:
    """Compare an artifact's answers with those of some models under onnxruntime.

    Raises CheckFailed where they differ by more than `allowed` of the largest value.
    """
    found = [executable(feed) for feed in feeds]
    worst = Difference(0.0, 0.0, "")
    for name, model in against.items():
        difference = _largest_difference(model, feeds, found)
        if not difference.within(allowed):
            raise CheckFailed(
                f"verify: the compiled artifact disagrees with {name} under onnxruntime: "
                f'output "{difference.worst}" differs by {difference.max_abs_error:.3g}, '
                f"{difference.max_rel_error:.1e} of its largest value; {allowed:.1e} is "
                "allowed. Nothing was written; this is a fault of the target's kernels: "
                "report it."
            )
        worst = max(worst, difference, key=lambda a: a.max_rel_error)
    return {
        "max_abs_error": worst.max_abs_error,
        "max_rel_error": worst.max_rel_error,
        "samples": len(feeds),
        "against": list(against),
    }


def allowed_error(saved: Path, feeds: Sequence[dict[str, np.ndarray]], rounds: bool) -> float:
    """Return how far answers may be from a saved model's, over the largest one.

    `rounds` says whether the model rounds to integers somewhere.
    """
    if not rounds:
        return AGREES
    model = shaken(read_onnx(saved))
    steady, moved = oracle.session(saved), oracle.session(model)
    away = max(
        compare(oracle.outputs_of(steady, f), oracle.outputs_of(moved, f)).max_rel_error
        for f in feeds
    )
    return max(AGREES, min(_TIMES_SHAKEN * away, _MOST_SHAKEN))


def _largest_difference(
    model: Graph | Path, feeds: Sequence[dict[str, np.ndarray]], found: Sequence[Outputs]
) -> Difference:
    session = oracle.session(model)
    return max(
        (compare(oracle.outputs_of(session, f), o) for f, o in zip(feeds, found, strict=True)),
        key=lambda difference: difference.max_rel_error,
    )
