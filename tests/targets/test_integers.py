"""Layers on 8-bit integers: exact sums, and answers that onnxruntime gives too."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import (
    EXACT,
    Within,
    agree,
    build,
    built,
    cpu,
    every_dot,
    graph_of,
    islands,
    normal_feeds,
)
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.targets.cpu import CpuBackend
from tilewright.targets.program_files import PROGRAM

# Powers of two: scaling is then exact, and so is all that follows from exact sums.
SOURCE_SCALE, WEIGHT_SCALE = 0.5, 0.25
# Of sums below 2^24 times two scales: rounded twice.
ROUNDED = Within(rtol=3e-7, atol=0)


def whole(*shape: int, kind: str = "int8", seed: int = 0) -> np.ndarray:
    limits = np.iinfo(kind)
    r = np.random.default_rng(seed)
    return r.integers(limits.min, limits.max + 1, shape).astype(kind)


def matmul(positions: int, weights: np.ndarray, kind: str = "uint8", zero: int = 0) -> Graph:
    """Return a graph of x (positions, inputs) times int8 weights (inputs, outputs)."""
    inputs, outputs = weights.shape
    return graph_of(
        f"""g ({kind}[{positions},{inputs}] x) => (float[{positions},{outputs}] y) {{
            a = DequantizeLinear(x, s, z)  b = DequantizeLinear <axis = 1> (w, v)
            y = MatMul(a, b)
        }}""",
        s=np.array(SOURCE_SCALE, np.float32),
        z=np.array(zero, kind),
        w=weights,
        v=np.full(outputs, WEIGHT_SCALE, np.float32),
    )


def product(x: np.ndarray, zero: int, weights: np.ndarray) -> np.ndarray:
    """Return the layer's exact answer."""
    sums = (x.astype(np.int64) - zero) @ weights.astype(np.int64)
    return (sums * (SOURCE_SCALE * WEIGHT_SCALE)).astype(np.float32)


@every_dot
@settings(max_examples=8, deadline=None)
@given(
    positions=st.integers(16, 90),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 80),
    zeros=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    kind=st.sampled_from(["uint8", "int8"]),
    zero=st.integers(-128, 255),
)
def test_sums_are_exact_for_every_shape_and_pattern_of_zeros(
    isa: str, positions: int, inputs: int, outputs: int, zeros: float, kind: str, zero: int
) -> None:
    weights = whole(inputs, outputs)
    r = np.random.default_rng(inputs)
    for first in range(0, outputs, 32):
        weights[r.random(inputs) < zeros, first : first + 32] = 0
    limits = np.iinfo(kind)
    zero = int(np.clip(zero, limits.min, limits.max))
    executable, made = built(matmul(positions, weights, kind, zero), cpu(isa), threads=2)
    x = whole(positions, inputs, kind=kind, seed=1)
    np.testing.assert_array_equal(executable({"x": x})["y"], product(x, zero, weights))
    assert [(layer.bits, layer.kernel[:4]) for layer in made.layers] == [(8, "int8")]


@every_dot
def test_the_largest_values_do_not_overflow(isa: str) -> None:
    weights = np.full((64, 32), -128, np.int8)
    x = np.full((16, 64), 255, np.uint8)
    executable, _ = built(matmul(16, weights), cpu(isa))
    np.testing.assert_array_equal(executable({"x": x})["y"], product(x, 0, weights))


@every_dot
@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("kernel", "geometry", "shape"),
    [
        (2, "strides = [2, 2]", (40, 36)),
        (4, "strides = [2, 2], pads = [1, 1, 1, 1]", (40, 36)),
        (3, "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]", (40, 36)),
        (3, "strides = [3, 3]", (60, 54)),
        (3, "pads = [1, 1, 1, 1]", (20, 18)),
        (4, "strides = [2, 2], pads = [0, 1, 2, 1]", (40, 36)),
    ],
)
def test_transposed_convolutions_are_exact(
    kernel: int, geometry: str, shape: tuple[int, int], kind: str, isa: str
) -> None:
    graph = graph_of(
        f"""g ({kind}[2,5,20,18] x) => (float[2,7,{shape[0]},{shape[1]}] y) {{
            a = DequantizeLinear(x, s, z)  b = DequantizeLinear <axis = 1> (w, v)
            y = ConvTranspose <{geometry}> (a, b, bias)
        }}""",
        s=np.array(SOURCE_SCALE, np.float32),
        z=np.array(3, kind),
        w=whole(5, 7, kernel, kernel),
        v=WEIGHT_SCALE * 2.0 ** -np.arange(7, dtype=np.float32),
        bias=np.arange(-3, 4).astype(np.float32),
    )
    made = agree(graph, {"x": whole(2, 5, 20, 18, kind=kind, seed=1)}, isa, within=EXACT)
    assert {layer.kernel for layer in made.layers} == {"int8 dense, lanes = positions"}


def test_a_quantized_transposed_convolution_over_few_columns_runs_in_floats() -> None:
    graph = graph_of(
        """g (uint8[1,5,3,2] x) => (float[1,7,6,4] y) {
            a = DequantizeLinear(x, s)  b = DequantizeLinear <axis = 1> (w, v)
            y = ConvTranspose <strides = [2, 2]> (a, b)
        }""",
        s=np.array(SOURCE_SCALE, np.float32),
        w=whole(5, 7, 2, 2),
        v=np.full(7, WEIGHT_SCALE, np.float32),
    )
    made = agree(graph, {"x": whole(1, 5, 3, 2, kind="uint8", seed=1)}, within=EXACT)
    assert islands(made) == []
    assert {layer.bits for layer in made.layers} == {32}


@every_dot
@pytest.mark.parametrize(
    "geometry",
    [
        "",
        "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>",
        "<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 2, 1]>",
        "<kernel_shape = [3, 3], dilations = [2, 3], pads = [2, 3, 2, 3]>",
        '<kernel_shape = [5, 1], auto_pad = "SAME_LOWER">',
    ],
)
def test_convolutions_pad_with_the_zero_point(geometry: str, isa: str) -> None:
    kernel = (3, 3) if "3, 3" in geometry else (5, 1) if "5" in geometry else (1, 1)
    out = (17 if "2, 2" in geometry else 33, 17 if "2, 2" in geometry else 34)
    graph = graph_of(
        f"""g (uint8[2,5,33,34] x) => (float[2,7,{out[0]},{out[1]}] y) {{
            a = DequantizeLinear(x, s, z)  b = DequantizeLinear <axis = 0> (w, v)
            c = Conv {geometry} (a, b, bias)  y = Relu(c)
        }}""",
        s=np.array(SOURCE_SCALE, np.float32),
        z=np.array(93, np.uint8),
        w=whole(7, 5, *kernel),
        v=np.full(7, WEIGHT_SCALE, np.float32),
        bias=np.arange(-3, 4).astype(np.float32),
    )
    made = agree(graph, {"x": whole(2, 5, 33, 34, kind="uint8")}, isa, within=EXACT)
    assert [layer.bits for layer in made.layers] == [8]
    assert islands(made) == []


@every_dot
def test_a_network_between_quantizers_keeps_to_integers(isa: str) -> None:
    graph = graph_of(
        """g (float[1,40,24] x) => (float[1,40,8] y) {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)
            w1 = DequantizeLinear <axis = 1> (w, v)  h = MatMul(a, w1)  r = Relu(h)
            q2 = QuantizeLinear(r, s2, z2)  a2 = DequantizeLinear(q2, s2, z2)
            u1 = DequantizeLinear <axis = 0> (u, t)
            flat = Reshape(a2, two)  g1 = Gemm <transB = 1, alpha = 2.0> (flat, u1, bias)
            y = Reshape(g1, three)
        }""",
        s=np.array(0.03, np.float32),
        z=np.array(120, np.uint8),
        w=whole(24, 16),
        v=np.linspace(0.001, 0.02, 16, dtype=np.float32),
        s2=np.array(0.1, np.float32),
        z2=np.array(0, np.uint8),
        u=whole(8, 16, seed=5),
        t=np.linspace(0.01, 0.02, 8, dtype=np.float32),
        bias=normal(8),
        two=np.array([40, 16]),
        three=np.array([1, 40, 8]),
    )
    made = agree(graph, {"x": normal(1, 40, 24)}, isa, within=Within(rtol=1e-5, atol=1e-4))
    assert islands(made) == []


@every_dot
def test_quantizing_rounds_ties_to_even_and_saturates(isa: str) -> None:
    n = 64
    x = np.concatenate([np.arange(-24, 24) / 2, [1e30, -1e30, np.inf, -np.inf], normal(12)])
    scale = np.array(1.0, np.float32)
    graph = graph_of(
        f"""g (float[{n}] x) => (uint8[{n}] u, int8[{n}] i, float[{n}] back) {{
            u = QuantizeLinear(x, one, zu)  i = QuantizeLinear(x, third, zi)
            back = DequantizeLinear(i, third, zi)
        }}""",
        one=scale,
        third=np.array(1 / 3, np.float32),
        zu=np.array(5, np.uint8),
        zi=np.array(-7, np.int8),
    )
    made = agree(graph, {"x": x.astype(np.float32)}, isa, within=EXACT)
    assert islands(made) == []


@every_dot
@settings(max_examples=6, deadline=None)
@given(
    scale=st.sampled_from([2.0**-20, 1e-3, 0.0173, 1 / 3, 7.7, 1000.0]),
    seed=st.integers(0, 1000),
)
def test_quantizing_divides_as_onnxruntime_does(isa: str, scale: float, seed: int) -> None:
    graph = graph_of(
        "g (float[400] x) => (uint8[400] y) { y = QuantizeLinear(x, s, z) }",
        s=np.array(scale, np.float32),
        z=np.array(128, np.uint8),
    )
    # Half of them are ties or next to one.
    r = np.random.default_rng(seed)
    ties = (r.integers(-130, 130, 200) + 0.5) * np.float32(scale)
    x = np.concatenate([ties, r.standard_normal(200) * 60 * scale]).astype(np.float32)
    agree(graph, {"x": x}, isa, within=EXACT)


def test_readers_of_quantized_tensors_that_are_no_layers_get_their_numbers() -> None:
    graph = graph_of(
        """g (float[1,4,9,9] x) => (float[1,4,9,9] y, float[1,4,4,4] p, float[1,4,9,9] a) {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)
            t = Transpose <perm = [0, 1, 3, 2]> (a)  q2 = QuantizeLinear(t, s, z)
            b = DequantizeLinear(q2, s, z)  y = Add(a, b)
            p = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (b)
        }""",
        s=np.array(0.02, np.float32),
        z=np.array(100, np.uint8),
    )
    made = agree(graph, {"x": normal(1, 4, 9, 9)}, within=Within(rtol=1e-6, atol=1e-7))
    assert islands(made) == []


def test_a_quantized_tensor_may_be_read_in_two_shapes() -> None:
    graph = graph_of(
        """g (float[4,4] x, uint8[4,1] q) => (float[4,4,1] y) {
            d = DequantizeLinear(q, s, z)  a = Add(x, d)  r = Reshape(a, shape)  y = Add(r, d)
        }""",
        s=np.array(0.5, np.float32),
        z=np.array(3, np.uint8),
        shape=np.array([4, 4, 1]),
    )
    feeds = {"x": normal(4, 4), "q": np.array([[1], [20], [50], [255]], np.uint8)}
    agree(graph, feeds, within=Within(rtol=1e-6, atol=0))


def test_sums_that_may_not_fit_32_bits_run_on_floats() -> None:
    weights = np.full((70_000, 32), 127, np.int8)
    executable, made = built(matmul(16, weights))
    x = np.full((16, 70_000), 255, np.uint8)
    np.testing.assert_allclose(executable({"x": x})["y"], product(x, 0, weights), rtol=1e-3)
    assert not made.layers[0].kernel.startswith("int8")


def test_a_depthwise_convolution_whose_scale_is_computed_is_an_island() -> None:
    graph = graph_of(
        """g (float[1,4,9,9] x, float s) => (float[1,4,7,7] y) {
            b = DequantizeLinear(w, s)  y = Conv <group = 4> (x, b)
        }""",
        w=whole(4, 1, 3, 3),
    )
    feeds = {"x": normal(1, 4, 9, 9), "s": np.array(0.1, np.float32)}
    made = agree(graph, feeds, within=Within(rtol=1e-4, atol=1e-4))
    assert "Conv" in islands(made)[-1]


def test_weights_that_become_half_floats_are_left_to_onnxruntime() -> None:
    graph = graph_of(
        """g (float16[20,8] x) => (float16[20,4] y) {
            b = DequantizeLinear <axis = 1> (w, v)  y = MatMul(x, b)
        }""",
        opset=21,
        w=whole(8, 4),
        v=np.full(4, WEIGHT_SCALE, np.float16),
    )
    made = agree(graph, {"x": normal(20, 8).astype(np.float16)}, within=EXACT)
    assert islands(made) == ["DequantizeLinear_0", "MatMul_1"]


def test_an_empty_quantized_tensor_is_left_to_onnxruntime() -> None:
    graph = graph_of(
        """g (float[20,0] x) => (float[20,8] y) {
            q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)
            b = DequantizeLinear <axis = 1> (w, v)  y = MatMul(a, b)
        }""",
        s=np.array(0.5, np.float32),
        z=np.array(3, np.uint8),
        w=np.zeros((0, 8), np.int8),
        v=np.ones(8, np.float32),
    )
    agree(graph, {"x": np.zeros((20, 0), np.float32)}, within=EXACT)


@pytest.mark.parametrize("scale", [1e-40, 0.0])
def test_scales_without_a_reciprocal_are_left_to_onnxruntime(scale: float) -> None:
    graph = graph_of(
        "g (float[4] x) => (uint8[4] y) { y = QuantizeLinear(x, s, z) }",
        s=np.array(scale, np.float32),
        z=np.array(3, np.uint8),
    )
    x = np.array([0, 1e-40, 5e-40, 1], np.float32)
    assert islands(agree(graph, {"x": x}, within=EXACT)) == ["QuantizeLinear_0"]


def test_a_normalization_stores_its_answer_for_those_who_want_integers_too() -> None:
    graph = graph_of(
        """g (float[40,24] x) => (float[40,24] n, uint8[24,40] q) {
            n = LayerNormalization(x, g, b)  t = Transpose <perm = [1, 0]> (n)
            q = QuantizeLinear(t, s, z)
        }""",
        g=normal(24, seed=4),
        b=normal(24, seed=5),
        s=np.array(0.02, np.float32),
        z=np.array(100, np.uint8),
    )
    agree(graph, {"x": normal(40, 24)}, within=Within(rtol=1e-5, atol=1e-5))


def test_few_positions_run_on_floats_with_small_weights() -> None:
    weights = whole(24, 40)
    executable, made = built(matmul(3, weights))
    x = whole(3, 24, kind="uint8", seed=1)
    np.testing.assert_allclose(executable({"x": x})["y"], product(x, 0, weights), *ROUNDED)
    assert [(layer.bits, layer.kernel[:5]) for layer in made.layers] == [(8, "dense")]


def test_words_of_weights_that_spell_a_signalling_nan_keep_their_bits() -> None:
    weights = whole(8, 64)
    weights[:, 2::4], weights[:, 3::4] = -127, 127
    graph = graph_of(
        """g (float[1,8] x) => (float[1,64] y) {
            b = DequantizeLinear <axis = 1> (w, v)  y = MatMul(x, b)
        }""",
        w=weights,
        v=np.full(64, WEIGHT_SCALE, np.float32),
    )
    made = agree(graph, {"x": np.arange(8, dtype=np.float32)[None]}, within=EXACT)
    assert [layer.bits for layer in made.layers] == [8]


def test_an_artifact_for_another_cpu_is_refused_before_it_crashes(tmp_path: Path) -> None:
    build(matmul(16, whole(8, 8)), tmp_path)
    content = json.loads((tmp_path / PROGRAM).read_text())
    content["needs"].append("avx1024")
    (tmp_path / PROGRAM).write_text(json.dumps(content))
    with pytest.raises(UnusableInput, match=r"avx1024.*Compile it here"):
        CpuBackend().load(tmp_path)


@pytest.mark.parametrize("isa", ["avx2", "host"])
@settings(max_examples=6, deadline=None)
@given(
    positions=st.integers(1, 40),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 70),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
)
@example(positions=16, inputs=40, outputs=64, zeros=0.5)
@example(positions=33, inputs=1, outputs=16, zeros=0.0)
def test_small_weights_become_floats_in_registers(
    isa: str, positions: int, inputs: int, outputs: int, zeros: float
) -> None:
    weights = whole(inputs, outputs)
    r = np.random.default_rng(inputs)
    for first in range(0, outputs, 32):
        weights[r.random(inputs) < zeros, first : first + 32] = 0
    graph = graph_of(
        f"""g (float[{positions},{inputs}] x) => (float[{positions},{outputs}] y) {{
            b = DequantizeLinear <axis = 1> (w, v)  y = MatMul(x, b)
        }}""",
        w=weights,
        v=np.linspace(0.01, 0.02, outputs, dtype=np.float32),
    )
    # Sums of up to 90 products of some hundreds.
    made = agree(graph, normal_feeds(graph), isa, within=Within(rtol=1e-4, atol=1e-4))
    (layer,) = made.layers
    across = "lanes = channels" in layer.kernel
    assert across or positions >= 24
    assert layer.bits == (8 if across and outputs % 4 == 0 else 32)
    assert islands(made) == []
