"""What pass and core tests share: a device, a context, runs under onnxruntime."""

from collections.abc import Mapping

import numpy as np

from tests.small_models import small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.layout import Tile
from tilewright.plan import Plan
from tilewright.protocol import Context
from tilewright.target import LaneOrder, Target

DEVICE = Target(
    "device",
    "none",
    "for tests",
    "",
    {"fp32": (LaneOrder("positions", Tile(4), 8), LaneOrder("channels", Tile(8), 1))},
)

# Vectors of channels are stored as a whole: the rows of a tile are neighbours.
CHANNELS = Target(
    "channels", "none", "for tests", "", {"fp32": (LaneOrder("channels", Tile(4), 1),)}
)

THREE_LAYERS = """g (float[1,16,12] x) => (float[1,16,6] y) {
    a = MatMul(x, w1)  b = Add(a, b1)  r = Relu(b)
    c = MatMul(r, w2)  d = Add(c, b2)  s = Tanh(d)
    y = MatMul(s, w3)
}"""


def three_layers(seed: int = 0) -> Graph:
    """Return x (1, 16, 12) -> 20, Relu -> 8, Tanh -> 6, with biases on the first two."""
    r = np.random.default_rng(seed)
    shapes = {"w1": (12, 20), "b1": (20,), "w2": (20, 8), "b2": (8,), "w3": (8, 6)}
    weights = {name: r.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return small_graph(THREE_LAYERS, **weights)


def correlated(samples: int, positions: int, features: int, seed: int = 1) -> np.ndarray:
    """Return inputs of four strong causes and some noise: (samples, positions, features)."""
    mixing = np.random.default_rng(0).standard_normal((4, features))
    r = np.random.default_rng(seed)
    causes = r.standard_normal((samples, positions, 4)) @ mixing
    noise = 0.3 * r.standard_normal((samples, positions, features))
    return np.asarray(causes + noise + 0.5, dtype=np.float32)


def context(
    calibration: Calibration | None = None, plan: Plan | None = None, seed: int = 0
) -> Context:
    return Context(DEVICE, calibration, seed=seed, plan=plan)


def agree(before: Graph, after: Graph, feeds: Mapping[str, np.ndarray]) -> None:
    """Assert that two graphs give the same answers under onnxruntime."""
    expected, found = oracle.run(before, feeds), oracle.run(after, feeds)
    assert list(expected) == list(found)
    for name, values in expected.items():
        # Folding reorders a few float32 operations: some units in the last place.
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def ops(graph: Graph) -> list[str]:
    return [str(node.op) for node in graph.nodes]
