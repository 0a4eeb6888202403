"""Lower a whole graph to a program of kernel calls."""

from collections.abc import Callable

from tilewright.errors import CannotLower
from tilewright.graph import Graph
from tilewright.layer_norms import recognize_layer_norms
from tilewright.protocol import Report
from tilewright.target import Target
from tilewright.targets.kernels.pen import Isa
from tilewright.targets.lower.anchors import ANCHORS
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.patterns import quantize_before_views
from tilewright.targets.lower.program import Program
from tilewright.targets.lower.sites import Pick


def lowering_of(
    graph: Graph, target: Target, isa: Isa, report: Report
) -> Callable[[Pick], Program]:
    """Return what lowers a graph, with what is picked wherever there are several ways.

    It raises CannotLower where a node can run neither here nor in onnxruntime.
    """
    whole = quantize_before_views(recognize_layer_norms(graph))

    def lower(pick: Pick) -> Program:
        try:
            return Lowering(whole, target, isa, ANCHORS, pick).run(report)
        except NotLowered as error:
            raise CannotLower(
                f"Target {target.name} cannot run this model: {error}."
            ) from error

    return lower
