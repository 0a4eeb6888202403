"""Compare the answers of a compressed model with those of the model that it was made of."""

import math
from typing import Any

from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.cost import node_costs
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import Report

_MOST_SAMPLES = 64
_FEWEST_SAMPLES = 4
_MACS = 1 << 36  # of the dense model, over all samples: about two seconds of two cores


def compare_answers(
    dense: Graph, compressed: Graph, calibration: Calibration | None, report: Report
) -> dict[str, Any] | None:
    """Return the figures of `Agreement` on up to 64 samples, from all over the data.

    Passes may have seen these samples: nothing is held out from them. Of large models fewer
    are taken, but at least 4. None, and a report why, where there is nothing to compare.
    """
    if calibration is None:
        report("no calibration data: how far the answers moved is not measured")
        return None
    if calibration.samples > 1 and calibration.are_alike():
        report(
            "all calibration samples are the same: how far the answers moved is not measured"
        )
        return None
    macs = sum(cost.macs for cost in node_costs(dense))
    most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, _MACS // max(macs, 1)))
    _, samples = calibration.held_out(math.ceil(calibration.samples / most))
    try:
        agreement = Answers(dense, samples).agreement(compressed)
    except UnusableInput as error:
        report(f"how far the answers moved is not measured: {error}")
        return None
    return {
        "agreement": agreement.value,
        "same_argmax": agreement.same_argmax,
        "samples": samples.samples,
    }
