"""What a layer is fitted to where an activation flattens its outputs."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import erf, expit

from tests.small_models import normal, small_graph
from tilewright import Calibration, Context, find_target, oracle
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.passes.prune import descent
from tilewright.passes.prune.activation import Activation, activation_behind
from tilewright.passes.prune.bias import use_counts
from tilewright.passes.prune.channels import PruneChannels
from tilewright.passes.prune.tiles import PruneTiles

GELU = "d = Div(a, root) e = Erf(d) p = Add(e, one) y = Mul(a, p)"
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "y = Relu(a)": lambda x: np.maximum(x, 0),
    "y = Clip(a, zero, six)": lambda x: np.clip(x, 0, 6),
    "y = HardSwish(a)": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "s = Sigmoid(a) y = Mul(a, s)": lambda x: x * expit(x),
    GELU: lambda x: x * (1 + erf(x / np.sqrt(2))),
}
NUMBERS = {"zero": 0.0, "one": 1.0, "six": 6.0, "root": np.sqrt(2)}


def layer_and(tail: str, inputs: int = 32, outputs: int = 16, shift: float = 0.0) -> Graph:
    """Return x -> MatMul w -> Add b -> tail; most outputs are negative with a `shift` below."""
    used = {n: np.array(v, np.float32) for n, v in NUMBERS.items() if n in tail}
    text = f"""g (float[1,20,{inputs}] x) => (float[1,20,{outputs}] y) {{
        m = MatMul(x, w)  a = Add(m, b)  {tail}
    }}"""
    bias = np.full(outputs, shift, np.float32) + normal(outputs, seed=4)
    weights = normal(inputs, outputs, seed=1) / np.float32(np.sqrt(inputs))
    return small_graph(text, w=weights, b=bias, **used).sorted()


def found_in(graph: Graph) -> Activation | None:
    (layer,) = linear_layers(graph)
    return activation_behind(layer, graph, use_counts(graph))


@pytest.mark.parametrize("tail", CURVES)
def test_the_operators_behind_a_bias_are_one_function(tail: str) -> None:
    x = 4 * normal(3, 50)
    found = found_in(layer_and(tail))
    assert found is not None
    # The curves are computed in float64, and onnxruntime's erf is an approximation.
    np.testing.assert_allclose(found(x), CURVES[tail](x.astype(float)), atol=2e-6)


@pytest.mark.parametrize(
    "tail",
    [
        "y = Identity(a)",
        "y = Mul(a, six)",
        "r = Relu(a) y = Add(r, a) z = Relu(m)",
        "r = Relu(m) y = Add(r, a)",
        "y = Softmax(a)",
    ],
)
def test_what_bends_nothing_or_is_read_besides_is_no_activation(tail: str) -> None:
    assert found_in(layer_and(tail)) is None


def data_for(graph: Graph, samples: int = 60) -> Calibration:
    mixed = normal(32, 32, seed=8)
    return Calibration.from_arrays({"x": normal(samples, 20, 32, seed=3) @ mixed}, graph.inputs)


def pruned(graph: Graph, data: Calibration) -> Graph:
    step = PruneTiles(sparsity=0.6, ends=True, smallest=1, damp=1e-3)
    return step(graph, Context(find_target("cpu"), data)).graph


def error(found: Graph, graph: Graph, data: Calibration) -> float:
    """Return the squared error of the answers, relative to the dense ones."""
    pairs = [[oracle.run(g, feeds)["y"] for g in (found, graph)] for feeds in data.feeds()]
    away = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return away / sum(float(np.square(b).sum()) for _, b in pairs)


@pytest.mark.parametrize("tail", CURVES)
@pytest.mark.parametrize("shift", [-16.0, -8.0, 0.0])
def test_answers_behind_an_activation_are_nearer_than_those_of_least_squares(
    tail: str, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = layer_and(tail, shift=shift)
    data = data_for(graph)
    nearer = error(pruned(graph, data), graph, data)
    monkeypatch.setattr(descent, "_ROUNDS", 0)
    # The more an activation flattens, the more there is to gain: 25 % and more at -16.
    most = {-16.0: 0.75, -8.0: 0.85, 0.0: 0.98}[shift]
    assert nearer < most * error(pruned(graph, data), graph, data)


def test_each_output_goes_down_until_no_direction_of_its_own_leads_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descent, "_ROUNDS", 200)
    graph = layer_and("s = Sigmoid(a) y = Mul(a, s)", shift=-4.0)
    data = data_for(graph)
    found = pruned(graph, data).constants()
    w, b, mask = found["w"].astype(float), found["b"].astype(float), found["w"] != 0
    x = np.concatenate([feeds["x"][0] for feeds in data.feeds()]).astype(float)
    dense = graph.constants()
    z, y = x @ w + b, x @ dense["w"].astype(float) + dense["b"]
    share = expit(z)
    away = (z * share - y * expit(y)) * share * (1 + z * (1 - share))
    energy = np.square(x - x.mean(axis=0)).sum(axis=0)
    steep = expit(y) * (1 + y * (1 - expit(y)))
    damping = 1e-3 * (energy + 0.05 * energy.mean())[:, None] * (w - dense["w"])
    damping *= np.square(steep).mean(axis=0)
    slope = np.where(mask, (x - x.mean(axis=0)).T @ away + damping, 0)
    start = np.where(mask, (x - x.mean(axis=0)).T @ (y * expit(y)), 0)
    # Slopes of the curve are differences over a hundredth of the mean output.
    assert np.abs(slope).max() < 1e-2 * np.abs(start).max()
    assert np.abs(away.sum(axis=0)).max() < 1e-2 * np.abs(away).sum(axis=0).max()


def test_a_straight_curve_is_left_to_least_squares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The data reach from -60 to 60.
    bounds = {"low": np.array(-1e6, np.float32), "high": np.array(1e6, np.float32)}
    text = """g (float[1,20,32] x) => (float[1,20,16] y) {
        m = MatMul(x, w)  a = Add(m, b)  y = Clip(a, low, high)
    }"""
    graph = small_graph(text, w=normal(32, 16, seed=1), b=normal(16), **bounds).sorted()
    data = data_for(graph)
    found = pruned(graph, data).constants()
    monkeypatch.setattr(descent, "_ROUNDS", 0)
    plain = pruned(graph, data).constants()
    # Least squares is where it starts, and the end: what is left is the rounding of slopes.
    np.testing.assert_allclose(found["w"], plain["w"], atol=1e-3)
    np.testing.assert_allclose(found["b"], plain["b"], atol=1e-3)


def test_what_never_passes_the_bend_asks_for_nothing() -> None:
    graph = layer_and("y = Relu(a)", shift=-1000.0)
    data = data_for(graph)
    found = pruned(graph, data)
    assert not any(oracle.run(found, feeds)["y"].any() for feeds in data.feeds())


def test_siblings_around_another_layer_see_what_they_were_fitted_on() -> None:
    outputs = ", ".join(f"float[1,20,16] {name}" for name in ("ra", "rd", "rc"))
    text = f"""g (float[1,20,32] x) => ({outputs}) {{
        p = Relu(x) q = Sigmoid(x) a = MatMul(p, w) d = MatMul(q, v) c = MatMul(p, u)
        ra = Relu(a) rd = Relu(d) rc = Relu(c)
    }}"""
    weights = {name: normal(32, 16, seed=i) for i, name in enumerate("wvu")}
    graph = small_graph(text, **weights).sorted()
    data = data_for(graph)
    found = pruned(graph, data)
    for feeds in data.first(5).feeds():
        wanted, given = (oracle.run(g, feeds) for g in (graph, found))
        for name, values in wanted.items():
            assert np.square(given[name] - values).sum() < 0.5 * np.square(values).sum()


CONSTANTS = {"two": np.full((1, 1, 1, 1), 2), "fifty": np.array(50), "half": np.array(0.5)}


@pytest.mark.parametrize(
    "tail",
    [
        "s = Mul(a, two) y = Relu(s)",
        "p = Abs(a) y = Sqrt(p)",
        "p = Add(a, fifty) y = Pow(p, half)",
        "y = Exp(a)",
    ],
)
def test_weights_stay_finite_whatever_the_curve(tail: str) -> None:
    used = {n: v.astype(np.float32) for n, v in CONSTANTS.items() if n in tail}
    shape = "1,1,20,16" if "two" in used else "1,20,16"
    text = f"g (float[1,20,32] x) => (float[{shape}] y) {{ a = MatMul(x, w) {tail} }}"
    graph = small_graph(text, w=normal(32, 16), **used).sorted()
    assert np.isfinite(pruned(graph, data_for(graph)).constants()["w"]).all()


@pytest.mark.parametrize(
    "text",
    [
        "a = Gemm<alpha=0.25>(x, w, b) y = Relu(a)",
        "a = Gemm(x, w, b) c = Gemm(x, v, b) e = Relu(a) f = Relu(c) y = Add(e, f)",
    ],
)
def test_a_bias_that_is_not_the_layers_own_leaves_it_to_least_squares(text: str) -> None:
    used = {"v": normal(8, 4, seed=2)} if "v" in text else {}
    graph = small_graph(
        f"g (float[2,8] x) => (float[2,4] y) {{ {text} }}", w=normal(8, 4), b=normal(4), **used
    ).sorted()
    for layer in linear_layers(graph):
        assert activation_behind(layer, graph, use_counts(graph)) is None


def test_a_layer_without_bias_gets_none() -> None:
    text = "g (float[1,20,32] x) => (float[1,20,16] y) { a = MatMul(x, w)  y = Relu(a) }"
    graph = small_graph(text, w=normal(32, 16)).sorted()
    data = data_for(graph)
    found = pruned(graph, data)
    assert found.constants().keys() == {"w"}
    assert error(found, graph, data) < 0.5


def test_hidden_features_that_stay_are_fitted_behind_their_activation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = """g (float[1,20,32] x) => (float[1,20,8] y) {
        m = MatMul(x, w)  a = Add(m, b)  h = Relu(a)
        n = MatMul(h, v)  c = Relu(n)  y = MatMul(c, u)
    }"""
    weights = {"w": normal(32, 64), "v": normal(64, 48, seed=2), "u": normal(48, 8, seed=3)}
    graph = small_graph(text, b=normal(64, seed=5) - 8, **weights).sorted()
    data = data_for(graph)
    step = PruneChannels(sparsity=0.5, ends=True, smallest=1, damp=1e-3)
    context = Context(find_target("cpu"), data)
    nearer = error(step(graph, context).graph, graph, data)
    monkeypatch.setattr(descent, "_ROUNDS", 0)
    assert nearer < 0.97 * error(step(graph, context).graph, graph, data)
