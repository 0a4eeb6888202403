"""The error of one layer alone is that of the network that a plan for it makes."""

import pytest

from tests.small_models import normal, small_graph
from tilewright.answers import Answers
from tilewright.calibration import Calibration
from tilewright.layout import Tile
from tilewright.passes.prune.choose_tiles import Choice
from tilewright.passes.prune.tile_errors import TileErrors
from tilewright.passes.prune.tiles import PruneTiles
from tilewright.plan import Plan
from tilewright.protocol import Context
from tilewright.tools.find_target import find_target


def test_errors_are_those_of_plans_for_one_layer_each() -> None:
    graph = small_graph(
        """g (float[1,12] x) => (float[1,6] y) {
            a = Gemm(x, w, b)  r = Relu(a)  c = MatMul(r, u)  d = MatMul(r, v)
            s = Add(c, d)  y = MatMul(s, o)
        }""",
        w=normal(12, 16),
        b=normal(16),
        u=normal(16, 8, seed=1),
        v=normal(16, 8, seed=2),
        o=normal(8, 6, seed=3),
    )
    calibration = Calibration.from_arrays({"x": normal(60, 12, seed=4)}, graph.inputs)
    fitted, held = calibration.held_out(4)
    dense = graph.edit().sorted()
    errors = TileErrors(dense, fitted, held, damp=0.05, seed=0)
    answers = Answers(dense, held)
    # c and d read one tensor, gathered once for both.
    for node in graph.nodes:
        if node.op == "Relu" or node.op == "Add":
            continue
        for sparsity in (0.25, 0.75):
            found = errors.of(node.name, Choice(Tile(4), sparsity))
            plan = Plan({node.name: {"sparsity": sparsity, "tile": "4x1"}})
            context = Context(find_target("cpu"), fitted, plan=plan)
            pruned = PruneTiles()(graph, context).graph
            assert found > 0
            assert found == pytest.approx(answers.error(pruned), rel=1e-6)  # float32 answers
