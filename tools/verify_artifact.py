"""Verify an artifact: its answers against those of the models that it came from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright import oracle
from tilewright.compare import (
    Allowed,
    AllValues,
    Difference,
    EachValue,
    compare,
    shaken,
    worst_of,
)
from tilewright.errors import CheckFailed
from tilewright.graph import Graph
from tilewright.protocol import Executable, Feeds

# Our kernels and onnxruntime's add up in different orders; float32 networks then differ by up
# to 1e-4 of their largest output. A wrong kernel differs by far more than this.
AGREES = EachValue(1e-3)
# Where a model rounds to integers, a sum that falls on the other side of a half moves a value
# by a whole step, and later layers may make much of it: one probability of a thousand may be
# quite another one. How far all values are from a shaken copy's says how far; of chance, a few
# times that. Where a copy's are the same, one is shaken more: of few values none may be near a
# half, but on other inputs one is. A wrong kernel leaves answers that have nothing to do with
# the right ones.
_TIMES_SHAKEN, _LEAST_SHAKEN, _MOST_SHAKEN = 3.0, 1e-3, 0.5
_SHAKEN_MORE, _MOST_SLACK = 10.0, 1e-2


def verify_artifact(
    against: Mapping[str, Graph | Path],
    executable: Executable,
    feeds: Sequence[Feeds],
    allowed: Allowed,
) -> dict[str, Any]:
    """Compare an artifact's answers with those of some models under onnxruntime.

    Raises CheckFailed where they differ by more than is `allowed`.
    """
    found = [executable(feed) for feed in feeds]
    worst: list[Difference] = []
    for name, model in against.items():
        session = oracle.session(model)
        expected = (oracle.outputs_of(session, feed) for feed in feeds)
        difference = worst_of(compare(zip(expected, found, strict=True)), allowed)
        if allowed.excess(difference) > 1:
            raise CheckFailed(
                f"verify: the compiled artifact disagrees with {name} under onnxruntime: "
                f"{difference}; {allowed.told(difference)} is allowed. Nothing was written; "
                "this is a fault of the target's kernels: report it."
            )
        worst.append(difference)
    return {
        **as_json(worst_of(worst, allowed)),
        "samples": len(feeds),
        "against": list(against),
    }


def as_json(difference: Difference) -> dict[str, float]:
    """Return the figures of a difference by name."""
    return {
        "max_abs_error": difference.max_abs_error,
        "max_rel_error": difference.max_rel_error,
        "rms_rel_error": difference.rms_rel_error,
    }


def allowed_error(saved: Path, feeds: Iterable[Feeds], slack: float) -> Allowed:
    """Return how far answers may be from those of a saved model, on these samples.

    `slack` is that of what found them (`Backend`).
    """
    message = onnx.load(saved, load_external_data=False)
    if all(node.op_type != "QuantizeLinear" for node in message.graph.node):
        return AGREES
    graph, samples = Graph.from_onnx(onnx.load(saved)), tuple(feeds)
    floats = {str(o.name): np.dtype(o.dtype).kind == "f" for o in graph.outputs}
    # Of few integers one that flips may be many.
    most = {name: _LEAST_SHAKEN if floats[name] else _MOST_SHAKEN for name in floats}
    steady, still = oracle.session(saved), {name for name in floats if floats[name]}
    most_slack = max(_MOST_SLACK, slack * _SHAKEN_MORE)
    while still and slack <= most_slack:
        copy = oracle.session(shaken(graph, slack))
        pairs = ((oracle.outputs_of(steady, f), oracle.outputs_of(copy, f)) for f in samples)
        for away in compare(pairs):
            if away.output in still and (chance := _TIMES_SHAKEN * away.rms_rel_error):
                most[away.output] = min(max(chance, _LEAST_SHAKEN), _MOST_SHAKEN)
                still.remove(away.output)
        slack *= _SHAKEN_MORE
    return AllValues(most)
