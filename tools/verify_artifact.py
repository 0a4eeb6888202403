"""Verify an artifact: its answers against those of the models that it came from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright import oracle
from tilewright.errors import CheckFailed
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.protocol import Executable, Feeds
from tilewright.verify import Allowed, compare, shaken, worst_of

# Our kernels and onnxruntime's add up in different orders; float32 networks then differ by up
# to 1e-4 of their largest output. A wrong kernel differs by far more than this.
AGREES = Allowed(1e-3)
# Where a model rounds to integers, a sum that falls on the other side of a half moves a value
# by a whole step, and later layers may make much of it: one probability of a thousand may be
# quite another one. How far all values are from a shaken copy's says how far; of chance, a few
# times that. A wrong kernel leaves answers that have nothing to do with the right ones.
_TIMES_SHAKEN, _LEAST_SHAKEN, _MOST_SHAKEN = 3.0, 1e-3, 0.5


def verify_artifact(
    against: Mapping[str, Graph | Path],
    executable: Executable,
    feeds: Sequence[dict[str, np.ndarray]],
    allowed: Allowed,
) -> dict[str, Any]:
    """Compare an artifact's answers with those of some models under onnxruntime.

    Raises CheckFailed where they differ by more than is `allowed`.
    """
    found = [executable(feed) for feed in feeds]
    differences = []
    for name, model in against.items():
        session = oracle.session(model)
        difference = worst_of(
            compare(oracle.outputs_of(session, feed), outputs)
            for feed, outputs in zip(feeds, found, strict=True)
        )
        if not difference.within(allowed):
            raise CheckFailed(
                f"verify: the compiled artifact disagrees with {name} under onnxruntime: "
                f"{difference}; {allowed} is allowed. Nothing was written; this is a fault of "
                "the target's kernels: report it."
            )
        differences.append(difference)
    worst = worst_of(differences)
    return {
        "max_abs_error": worst.max_abs_error,
        "max_rel_error": worst.max_rel_error,
        "rms_rel_error": worst.rms_rel_error,
        "samples": len(feeds),
        "against": list(against),
    }


def allowed_error(saved: Path, feeds: Iterable[Feeds]) -> Allowed:
    """Return how far answers may be from those of a saved model."""
    if not _rounds(saved):
        return AGREES
    steady, moved = oracle.session(saved), oracle.session(shaken(read_onnx(saved)))
    away = worst_of(
        compare(oracle.outputs_of(steady, feed), oracle.outputs_of(moved, feed))
        for feed in feeds
    )
    chance = _TIMES_SHAKEN * away.rms_rel_error
    return Allowed(math.inf, min(max(chance, _LEAST_SHAKEN), _MOST_SHAKEN))


def _rounds(saved: Path) -> bool:
    """Say whether a model rounds to integers somewhere."""
    graph = onnx.load(saved, load_external_data=False).graph
    return any(node.op_type == "QuantizeLinear" for node in graph.node)
