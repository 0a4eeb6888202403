import numpy as np
import pytest

from tests.graphs import three_layers
from tests.small_models import normal, small_graph
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, constant
from tilewright.layout import Tile
from tilewright.passes import PASSES
from tilewright.pipeline import Pipeline
from tilewright.protocol import Context
from tilewright.target import LaneOrder, Target
from tilewright.verify import unchanged


def test_a_copy_and_one_with_other_shapes_noted_are_unchanged() -> None:
    graph = three_layers()
    edited = graph.edit()
    edited.nodes[0].outputs[0].shape = None
    assert unchanged(graph, edited)


def test_another_weight_attribute_or_wire_is_a_change() -> None:
    text = "g (float[2,2] x, float[2,2] z) => (float[2,2] y) { y = Gemm<alpha=0.5>(x, w) }"
    graph = small_graph(text, w=np.eye(2, dtype=np.float32))

    def edited() -> Graph:
        return graph.edit()

    weight, attribute, wire = edited(), edited(), edited()
    weight.nodes[0].inputs[1].values = constant("w", np.ones((2, 2), np.float32)).values
    attribute.nodes[0].attrs["alpha"] = 0.25
    wire.nodes[0].inputs[0] = wire.inputs[1]
    assert not any(unchanged(graph, other) for other in (weight, attribute, wire))


def test_feeds_that_the_model_itself_refuses_are_the_users() -> None:
    text = """g (int64[2] ids) => (float[2,4] y) {
        e = Gather(table, ids)  y = Identity(e)
    }"""
    graph = small_graph(text, table=normal(5, 4))
    data = Calibration.from_arrays({"ids": np.array([[1, 9]])}, graph.inputs)
    pipeline = Pipeline.parse("remove-identities", PASSES)
    orders = {"fp32": (LaneOrder("channels", Tile(4), 1),)}
    context = Context(Target("cpu", "none", "for tests", "", orders), data)
    with pytest.raises(UnusableInput, match="onnxruntime cannot run the model"):
        pipeline.run(graph, context, reproductions=None)
