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
        flat = x.reshape(-1)
        if flat.size > _VALUES:
            # At random places: even steps would meet the same channels again and again.
            flat = flat[np.random.default_rng(0).integers(flat.size, size=_VALUES)]
        # Values that are there: between -inf and another there is none.
        low = np.percentile(flat, 100 - self.percentile, method="lower")
        high = np.percentile(flat, self.percentile, method="higher")
        return float(low), float(high)

    def over(self, samples: Iterable[tuple[float, float]]) -> tuple[float, float]:
        """Return the range over samples, zero included."""
        ends = np.array(list(samples))
        if self.kind == "minmax":
            low, high = ends[:, 0].min(), ends[:, 1].max()
        else:
            low, high = ends.mean(axis=0)
        return min(float(low), 0.0), max(float(high), 0.0)


def finite(ends: tuple[float, float], told: str) -> tuple[float, float]:
    """Return the range of what is told. Raises UnusableInput if it is not finite."""
    if not np.isfinite(ends).all():
        raise UnusableInput(
            f"quantize: {told} is NaN or infinite on the calibration data. Check the data, "
            "and the model under onnxruntime."
        )
    return ends


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
    found = {name: rule.over(samples) for name, samples in ends.items() if samples}
    # Masks may be -inf, and so may padding that a pool of largest values never returns.
    shared = _shared(cuts, _without_masks(cuts, found, rows))
    return {name: finite(range_, f'"{name}"') for name, range_ in shared.items()}


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

    A mask of -1e9, or of -inf, would leave no steps for the scores beside it: what is so low
    that the sum is below its range, whatever the other operand is, need not be told apart.
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
            # Unlike min and max, these keep NaN.
            whole[cut.group] = (
                float(np.minimum(low, before[0])),
                float(np.maximum(high, before[1])),
            )
    return {
        cut.tensor.name: whole.get(cut.group, ranges[cut.tensor.name])
        for cut in cuts
        if cut.tensor.name in ranges
    }
