"""Ranges of activations, over what calibration data make of a network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, with_outputs
from tilewright.oracle import outputs_of, session
from tilewright.passes.quantize.everywhere import Cut

# Values of one sample that a percentile is taken over: as many as fix it to a step.
_VALUES = 1 << 16
# A softmax makes less than 7e-6 of what is so far below its row's largest value: nothing that
# 8 bits show.
_BELOW = 12.0


@dataclass(frozen=True)
class Rule:
    """How a range comes from values: "minmax" holds all, "percentile" a share on each side."""

    kind: str
    percentile: float

    def ends(self, x: np.ndarray) -> tuple[float, float]:
        """Return the range of one sample."""
        if self.kind == "minmax":
            return float(x.min()), float(x.max())
        flat = x.reshape(-1)[:: max(1, x.size // _VALUES)]
        low, high = np.percentile(flat, [100 - self.percentile, self.percentile])
        return float(low), float(high)

    def over(self, samples: Iterable[tuple[float, float]], told: str) -> tuple[float, float]:
        """Return the range over samples, zero included. Raises UnusableInput if not finite."""
        ends = np.array(list(samples))
        if self.kind == "minmax":
            low, high = ends[:, 0].min(), ends[:, 1].max()
        else:
            low, high = ends.mean(axis=0)
        if not np.isfinite([low, high]).all():
            raise UnusableInput(
                f"quantize: {told} is NaN or infinite on the calibration data. Check the data, "
                "and the model under onnxruntime."
            )
        return min(float(low), 0.0), max(float(high), 0.0)


def cut_ranges(
    graph: Graph, cuts: Sequence[Cut], rule: Rule, calibration: Calibration
) -> dict[str, tuple[float, float]]:
    """Return the range of each tensor that is cut, one for the whole of a group."""
    if not cuts:
        return {}
    rows = _softmax_axes(cuts)
    names = [cut.tensor.name for cut in cuts]
    loaded = session(with_outputs(graph, names))
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for feeds in calibration.feeds():
        for name, x in outputs_of(loaded, feeds).items():
            if x.size:
                low, high = rule.ends(x)
                if name in rows:
                    low = max(low, float(x.max(axis=rows[name]).min()) - _BELOW)
                ends[name].append((low, high))
    found = {n: rule.over(e, f'"{n}"') for n, e in ends.items() if e}
    return _shared(cuts, _without_masks(cuts, found, rows))


def _softmax_axes(cuts: Sequence[Cut]) -> dict[str, int]:
    """Return along which axis each tensor is read that only softmaxes read."""
    found = {}
    for cut in cuts:
        readers = cut.tensor.outputs
        if readers and all(n.op == "Softmax" for n in readers):
            found[cut.tensor.name] = int(readers[0].attrs.get("axis", -1))
    return found


def _without_masks(
    cuts: Sequence[Cut], ranges: Mapping[str, tuple[float, float]], rows: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Raise the lower ends of what is only added to the input of a softmax.

    A mask of -1e9 would leave no steps for the scores beside it: what is so low that the sum
    is below its range, whatever the other operand is, need not be told apart.
    """
    found = dict(ranges)
    for cut in cuts:
        name = cut.tensor.name
        sums = [n for n in cut.tensor.outputs if n.op == "Add" and n.outputs[0].name in rows]
        if name not in found or not sums or len(sums) < len(cut.tensor.outputs):
            continue
        needed = min(found[n.outputs[0].name][0] - _highest(n, name, found) for n in sums)
        low, high = found[name]
        found[name] = max(low, min(needed, 0.0)), high
    return found


def _highest(add: gs.Node, name: str, ranges: Mapping[str, tuple[float, float]]) -> float:
    others = [t for t in add.inputs if t.name != name]
    return max((ranges[t.name][1] for t in others if t.name in ranges), default=np.inf)


def _shared(
    cuts: Sequence[Cut], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Give all tensors of a group one range."""
    whole: dict[int, tuple[float, float]] = {}
    for cut in cuts:
        if cut.counts and cut.tensor.name in ranges:
            low, high = ranges[cut.tensor.name]
            before = whole.get(cut.group, (low, high))
            whole[cut.group] = min(low, before[0]), max(high, before[1])
    return {
        cut.tensor.name: whole.get(cut.group, ranges[cut.tensor.name])
        for cut in cuts
        if cut.tensor.name in ranges
    }
