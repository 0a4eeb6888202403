"""Graphs in torch: they answer as onnxruntime does, and gradients are those of differences."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graphs import DEVICE, three_layers
from tests.small_models import normal, small_model
from tilewright import oracle
from tilewright.autograd import Differentiable
from tilewright.errors import UnusableInput
from tilewright.frontends import zoo
from tilewright.graph import Graph
from tilewright.passes.clean.fold_constants import FoldConstants
from tilewright.protocol import Context
from tilewright.tools.read_model import read_model

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch")


def graph_of(text: str, *, opset: int = 18, **weights: Any) -> Graph:
    graph = Graph.from_onnx(small_model(text, opset, **weights)).infer_shapes()
    return FoldConstants()(graph, Context(DEVICE)).graph.edit().sorted()


def answers_as_onnxruntime_does(graph: Graph, samples: int = 3) -> None:
    rng = np.random.default_rng(1)
    feeds = [
        {str(t.name): rng.standard_normal(t.shape).astype(t.dtype) for t in graph.inputs}
        for _ in range(samples)
    ]
    names = [str(t.name) for t in graph.outputs]
    stacked = {n: torch.from_numpy(np.stack([f[n] for f in feeds])) for n in feeds[0]}
    found = Differentiable(graph, [])(stacked, names)
    for index, sample in enumerate(feeds):
        expected = oracle.run(graph, sample)
        for name in names:
            mine = found[name][index].numpy()
            assert mine.dtype == expected[name].dtype
            # Sums of some hundred products in float32, in another order.
            np.testing.assert_allclose(mine, expected[name], rtol=2e-5, atol=2e-5)


ONE_IMAGE = "(float[1,4,9,7] x) => (float y)"
NODES = [
    "y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b)",
    'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)',
    'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w, b)',
    "y = Conv<group=4, pads=[1,1,1,1]>(x, d)",
    "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, t)",
    "y = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>(x)",
    "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)",
    "y = AveragePool<kernel_shape=[2,3], strides=[2,1], pads=[0,1,1,0], "
    "count_include_pad=1>(x)",
    "y = GlobalAveragePool(x)",
    "y = BatchNormalization(x, b4, b4, b4, v4)",
    "y = HardSigmoid<alpha=0.3, beta=0.4>(x)",
    "y = HardSwish(x)",
    "y = LeakyRelu<alpha=0.2>(x)",
    "y = Clip(x, low, high)",
    "y = Softmax<axis=1>(x)",
    "y = LogSoftmax(x)",
    "y = ReduceMean<keepdims=0>(x, axes)",
    "y = ReduceL2(x, axes)",
    "y = ReduceSum(x)",
    "y = ReduceMax(x, axes)",
    "y = Transpose<perm=[0,2,3,1]>(x)",
    "y = Flatten<axis=2>(x)",
    "y = Flatten<axis=-1>(x)",
    "y = Slice(x, from, to, at, by)",
    "y = Gather<axis=2>(x, picks)",
    "a, c = Split<axis=1, num_outputs=2>(x)  y = Concat<axis=-1>(c, a)",
    "a, c = Split<axis=1>(x, parts)  s = Sigmoid(c)  n = Neg(s)  y = Concat<axis=1>(a, n)",
    "y = Pad(x, pads, value)",
    "a = Unsqueeze(x, one)  c = Squeeze(a, one)  y = Erf(c)",
    'r = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
    'nearest_mode="floor">(x, , , sizes)  y = Tanh(r)',
    'r = Resize<mode="linear">(x, , , sizes)  y = Tanh(r)',
    'r = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , sizes) '
    "y = Tanh(r)",
    "a = Abs(x)  c = Sqrt(a)  e = Exp(c)  l = Log(e)  p = Pow(l, two)  y = Max(p, a, x)",
    "m = Greater(x, low)  a = Not(m)  y = Where(a, x, high)",
    "a = Reshape(x, shape)  y = Expand(a, wide)",
    "a = Cast<to=7>(x)  e = Mul(a, three)  f = Div(e, minus)  y = Cast<to=1>(f)",
    "y = Tanh(x)",
    "a = Softplus(x)  e = Reciprocal(a)  f = Sin(e)  h = Cos(f)  y = Min(h, x)",
]
WEIGHTS: dict[str, Any] = {
    "w": normal(6, 4, 3, 2),
    "b": normal(6),
    "d": normal(4, 1, 3, 3),
    "t": normal(4, 5, 3, 3),
    "b4": normal(4),
    "v4": np.array([0.5, 1, 2, 3], np.float32),
    "low": np.float32(-0.5),
    "high": np.float32(0.75),
    "axes": np.array([1, -1]),
    "from": np.array([6, 5]),
    "to": np.array([0, -(2**63)]),
    "at": np.array([2, -1]),
    "by": np.array([-2, -1]),
    "picks": np.array([[0, -1], [3, 2]]),
    "parts": np.array([1, 3]),
    "pads": np.array([0, 1, 0, 2, 0, 0, 3, 0]),
    "value": np.float32(1.5),
    "one": np.array([1]),
    "sizes": np.array([1, 4, 18, 21]),
    "two": np.float32(2),
    "shape": np.array([0, 2, -1, 1]),
    "wide": np.array([1, 2, 1, 3]),
    "three": np.array([3]),
    "minus": np.array([-2]),
}


@pytest.mark.parametrize("nodes", NODES)
def test_an_operator_does_what_it_does_in_onnxruntime(nodes: str) -> None:
    used: dict[str, Any] = {
        name: values for name, values in WEIGHTS.items() if _reads(nodes, name)
    }
    answers_as_onnxruntime_does(graph_of(f"g {ONE_IMAGE} {{ {nodes} }}", **used))


def _reads(nodes: str, name: str) -> bool:
    words = nodes.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return name in words


def test_gelu_layer_norm_and_gemm_do_what_they_do_in_onnxruntime() -> None:
    text = """g (float[3,8] x) => (float[3,5] y) {
        n = LayerNormalization<epsilon=0.001>(x, s, o)
        g = Gelu(n)  h = Gelu<approximate="tanh">(g)
        y = Gemm<alpha=0.5, beta=2.0, transB=1>(h, w, b)
    }"""
    weights: dict[str, Any] = {
        "s": normal(8),
        "o": normal(8),
        "w": normal(5, 8),
        "b": normal(5),
    }
    answers_as_onnxruntime_does(graph_of(text, opset=20, **weights))


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1, 4), seed=st.integers(0, 99))
def test_samples_side_by_side_are_as_they_are_alone(samples: int, seed: int) -> None:
    graph = three_layers(seed)
    answers_as_onnxruntime_does(graph, samples)


def test_a_gradient_is_the_limit_of_differences() -> None:
    graph = three_layers()
    x = np.random.default_rng(3).standard_normal((2, 1, 16, 12))
    network = Differentiable(graph, ["w1", "b2"])
    for group in (network.weights, network._fixed):
        for name, tensor in group.items():
            if tensor.is_floating_point():
                # Differences of float32 would be rounding.
                group[name] = tensor.detach().double().requires_grad_()

    def loss() -> "Tensor":
        return network({"x": torch.from_numpy(x)}, ["y"])["y"].square().sum()

    for name, at in (("w1", (2, 5)), ("b2", (3,))):
        weight = network.weights[name]
        (gradient,) = torch.autograd.grad(loss(), [weight])
        with torch.no_grad():
            weight[at] += 1e-5
            above = loss()
            weight[at] -= 2e-5
            below = loss()
            weight[at] += 1e-5
        assert float(gradient[at]) == pytest.approx(float(above - below) / 2e-5, rel=1e-6)


def test_what_is_not_covered_is_refused_by_name() -> None:
    graph = graph_of("g (float[1,4] x) => (float[1,4] y) { y = Hardmax(x) }")
    with pytest.raises(UnusableInput, match="no gradient through Hardmax"):
        Differentiable(graph, [])


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", ["minilm", "ppocr-rec", "ppocr-cls", "efficientnet-lite0", "vit-saliency"]
)
def test_a_real_model_answers_as_under_onnxruntime(name: str) -> None:
    source = read_model(f"zoo:{name}")
    graph = FoldConstants()(source.graph, Context(DEVICE)).graph.edit().sorted()
    feeds = zoo.calibration(name, 2)
    outputs = [str(t.name) for t in graph.outputs]
    stacked = {n: torch.from_numpy(np.stack([f[n] for f in feeds])) for n in feeds[0]}
    with torch.no_grad():
        found = Differentiable(graph, [])(stacked, outputs)
    for index, sample in enumerate(feeds):
        for name_, expected in oracle.run(graph, sample).items():
            # Of the largest answer: sums in another order, through up to a hundred layers.
            off = np.abs(found[name_][index].numpy() - expected).max()
            assert off <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("op", ["Softmax", "Softmax<axis=2>", "LogSoftmax", "Softmax<axis=-1>"])
def test_before_opset_13_a_softmax_takes_all_axes_behind_its_own_as_one(op: str) -> None:
    text = f"g (float[1,3,4,5] x) => (float[1,3,4,5] y) {{ y = {op}(x) }}"
    answers_as_onnxruntime_does(graph_of(text, opset=11))


@pytest.mark.parametrize(
    ("attributes", "inputs"),
    [
        ('mode="linear"', ", , scales"),
        ('mode="linear", antialias=1', ", , , sizes"),
        ('mode="linear", coordinate_transformation_mode="pytorch_half_pixel"', ", , , one"),
        ('mode="linear"', ", , , channels"),
        ('mode="cubic"', ", , , sizes"),
    ],
)
def test_a_resize_that_torch_does_otherwise_is_refused(attributes: str, inputs: str) -> None:
    weights: dict[str, Any] = {
        "scales": np.array([1, 1, 1.7, 2.3], np.float32),
        "sizes": np.array([1, 3, 8, 10]),
        "one": np.array([1, 3, 1, 10]),
        "channels": np.array([1, 6, 8, 10]),
    }
    used = {n: v for n, v in weights.items() if n in inputs}
    nodes = f"r = Resize<{attributes}>(x{inputs})  y = Tanh(r)"
    graph = graph_of(f"g (float[1,3,4,5] x) => (float y) {{ {nodes} }}", **used)
    with pytest.raises(UnusableInput, match="no gradient through Resize"):
        Differentiable(graph, [])


def test_whole_numbers_stay_whole() -> None:
    text = "g (int64[1,6] x) => (int64[1,6] y) { c = Clip(x, low, high)  y = Div(c, two) }"
    limits: dict[str, Any] = {"low": np.int64(-3), "high": np.int64(5), "two": np.array([2])}
    graph = graph_of(text, **limits)
    x = np.array([[-9, -3, 1, 3, 5, 9]])
    found = Differentiable(graph, [])({"x": torch.from_numpy(x[None])}, ["y"])["y"][0]
    np.testing.assert_array_equal(found.numpy(), oracle.run(graph, {"x": x})["y"])
