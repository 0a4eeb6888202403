"""What layers become when others were changed before them."""

from typing import Any

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.refit import fit, seen_by, settle
from tilewright.passes.prune.residual import Joined, joined_by
from tilewright.segments import Pair

TAILS = {
    "bias": "biased = Add(b, c) y = Add(biased, s)",
    "scale": "scaled = Mul(b, c) y = Add(s, scaled)",
}


def network(tail: str, seed: int = 0) -> Graph:
    """Return stream + branch, both linear in x; the branch's last layer has the weights w."""
    text = f"""g (float[1,6,8] x) => (float[1,6,4] y) {{
        s = MatMul(x, p)  a = MatMul(x, q)  h = Add(a, x)  b = MatMul(h, w)  {tail}
    }}"""
    weights: dict[str, Any] = {"q": normal(8, 8, seed=1) / 8, "w": normal(8, 4, seed=2)}
    return small_graph(
        text, p=normal(8, 4, seed=seed), c=1 + np.arange(4, dtype=np.float32), **weights
    )


def layer_called(graph: Graph, weight: str) -> Layer:
    (found,) = (layer for layer in linear_layers(graph) if layer.weight.name == weight)
    return found


def joined(graph: Graph) -> Joined | None:
    return joined_by(layer_called(graph, "w"), use_counts(graph))


@pytest.mark.parametrize("tail", ["y = Add(s, b)", TAILS["bias"], TAILS["scale"]])
def test_a_layer_makes_up_for_what_the_stream_behind_it_lacks(tail: str) -> None:
    dense, changed = network(tail, seed=0).sorted(), network(tail, seed=9).edit().sorted()
    data = Calibration.from_arrays({"x": normal(40, 6, 8, seed=5)}, dense.inputs)
    layer, uses = layer_called(changed, "w"), use_counts(changed)
    seen = seen_by([layer], Pair(data, dense), changed, uses)
    fitted = fit(layer, seen, 1e-7, uses)
    settle(layer, fitted, uses, [problem.target for problem in fitted.problems])
    # h is an invertible map of x: with other weights behind it, any stream can be made up for.
    feeds = {"x": normal(1, 6, 8, seed=77)}
    wanted, found = (oracle.run(graph, feeds)["y"] for graph in (dense, changed))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_stream_that_is_as_it_was_asks_for_nothing() -> None:
    dense = network("y = Add(s, b)").sorted()
    data = Calibration.from_arrays({"x": normal(40, 6, 8, seed=5)}, dense.inputs)
    layer = layer_called(dense, "w")
    seen = seen_by([layer], Pair(data, dense), dense, use_counts(dense))
    assert not seen.drifts[layer.name].product.any()


def test_with_too_few_examples_ten_times_the_damping_is_advised() -> None:
    """Two positions fix two directions of 64; what rounding adds is larger than the damping."""
    text = "g (float[1,2,64] x) => (float[1,2,4] y) { y = MatMul(x, w) }"
    dense = small_graph(text, w=normal(64, 4)).sorted()
    data = Calibration.from_arrays({"x": normal(1, 2, 64)}, dense.inputs)
    layer = layer_called(dense, "w")
    seen = seen_by([layer], Pair(data, dense), dense, use_counts(dense))
    with pytest.raises(UnusableInput, match=r"damp=1e-19. .*a larger damp, such as 1e-18\."):
        fit(layer, seen, 1e-19, use_counts(dense))


def test_scales_between_a_layer_and_its_stream_are_known() -> None:
    found = joined(network(TAILS["scale"]))
    assert found is not None
    assert found.stream == "s"
    assert found.scale.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "tail", ["y = Mul(b, c)", "y = Mul(s, b)", "r = Relu(b) y = Add(r, s)", "y = Add(b, b)"]
)
def test_what_is_not_added_to_a_stream_joins_none(tail: str) -> None:
    assert joined(network(tail)) is None


def test_what_is_an_answer_too_joins_none() -> None:
    text = """g (float[1,6,8] x) => (float[1,6,8] y, float[1,6,8] b) {
        b = MatMul(x, w)  y = Add(b, x)
    }"""
    assert joined(small_graph(text, w=normal(8, 8))) is None


def test_a_convolution_is_scaled_along_its_channels() -> None:
    text = """g (float[1,3,5,5] x) => (float[1,3,5,5] y) {
        b = Conv <pads = [1, 1, 1, 1]> (x, w)  m = Mul(b, c)  y = Add(m, x)
    }"""
    scale = np.array([2, 3, 4], np.float32).reshape(3, 1, 1)
    graph = small_graph(text, w=normal(3, 3, 3, 3), c=scale)
    found = joined(graph)
    assert found is not None
    assert (found.stream, found.scale.tolist()) == ("x", [2, 3, 4])
    wide = small_graph(text, w=normal(3, 3, 3, 3), c=normal(1, 5))
    assert joined(wide) is None
