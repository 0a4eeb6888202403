"""Each operator on the device: in the TOSA reference model, beside onnxruntime's QDQ."""

from typing import NamedTuple

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tests.targets.npu_units import U55, found_and_expected, on_device
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Context
from tilewright.targets.npu.signed import signed

IMAGE, ROWS = "float[1,8,10,12]", "float[1,6,16]"


class Case(NamedTuple):
    """A body that makes y of a, the output of a layer, and what it must become."""

    body: str
    ops: str  # of the units behind the layer
    rows: bool = False


# a is (1, 8, 10, 12), or (1, 6, 16) in rows.
CASES = {
    "a convolution with strides and uneven pads": Case(
        "y = Conv<kernel_shape=[3,3], strides=[2,2], pads=[0,1,1,1]>(a, w38, b6)", "Conv"
    ),
    "a convolution whose last windows do not fill": Case(
        "y = Conv<kernel_shape=[3,3], strides=[3,3]>(a, w38)", "Conv"
    ),
    "a dilated convolution": Case(
        "y = Conv<kernel_shape=[3,3], dilations=[2,2], pads=[2,2,2,2]>(a, w38)", "Conv"
    ),
    "a convolution with pads by name": Case(
        'y = Conv<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(a, w38)', "Conv"
    ),
    "a depthwise convolution": Case(
        "y = Conv<kernel_shape=[3,3], group=8, pads=[1,1,1,1]>(a, d8, b8)", "Conv"
    ),
    "a depthwise convolution with two outputs each": Case(
        "y = Conv<kernel_shape=[3,3], group=8>(a, d16)", "Conv"
    ),
    "a grouped convolution": Case("y = Conv<kernel_shape=[3,3], group=2>(a, g6)", "Conv"),
    "a layer, its bias and ReLU as one": Case(
        "c = Conv<kernel_shape=[3,3]>(a, w38) s = Add(c, bc) y = Relu(s)", "Conv"
    ),
    "a clamp behind a layer": Case(
        "c = Conv<kernel_shape=[3,3]>(a, w38) y = Clip(c, minus_half, half)", "Conv"
    ),
    "a transposed convolution": Case(
        "y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(a, t86, b6)", "ConvTranspose"
    ),
    "a transposed convolution with pads": Case(
        "y = ConvTranspose<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], "
        "output_padding=[1,1]>(a, t386)",
        "ConvTranspose",
    ),
    "a sum of two tensors": Case(
        "c = Conv<kernel_shape=[1,1]>(a, w18) y = Add(a, c)", "Conv Add"
    ),
    "a difference of two tensors": Case(
        "c = Conv<kernel_shape=[1,1]>(a, w18) y = Sub(a, c)", "Conv Sub"
    ),
    "a sum and ReLU as one": Case(
        "c = Conv<kernel_shape=[1,1]>(a, w18) s = Add(a, c) y = Relu(s)", "Conv Add"
    ),
    "a sum with constants": Case("y = Add(a, map)", "Add"),
    "a product with constants": Case("y = Mul(a, map)", "Mul"),
    "a product with one number a channel": Case(
        "p = GlobalAveragePool(a) s = Sigmoid(p) y = Mul(a, s)",
        "GlobalAveragePool Sigmoid Mul",
    ),
    "a mean over windows": Case(
        "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)", "AveragePool"
    ),
    "a mean over windows and padding": Case(
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a)",
        "AveragePool",
    ),
    "the largest of windows": Case(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)", "MaxPool"
    ),
    "the largest of all": Case("y = GlobalMaxPool(a)", "GlobalMaxPool"),
    "a mean over an image": Case("y = ReduceMean<axes=[2,3], keepdims=0>(a)", "ReduceMean"),
    "a mean over channels": Case("y = ReduceMean<axes=[1]>(a)", "ReduceMean"),
    "a sum over rows": Case("y = ReduceSum<keepdims=0>(a, one)", "ReduceSum", rows=True),
    "the largest of channels": Case("y = ReduceMax<axes=[1]>(a)", "ReduceMax"),
    "tensors side by side": Case(
        "c = Conv<kernel_shape=[1,1]>(a, w18) y = Concat<axis=1>(a, c)", "Conv Concat"
    ),
    "a view and back": Case("r = Reshape(a, flat) y = Reshape(r, folded)", "Reshape Reshape"),
    "a transposed image": Case("y = Transpose<perm=[0,2,3,1]>(a)", "Transpose"),
    "a part of a tensor": Case("y = Slice(a, starts, ends, axes)", "Slice"),
    "parts of a tensor": Case(
        "c, d = Split<axis=1>(a, parts) e = Relu(d) f = Conv<kernel_shape=[1,1]>(c, w15) "
        "y = Add(e, f)",
        "Split Split Relu Conv Add",
    ),
    "zeros around": Case("y = Pad(a, around)", "Pad"),
    "a layer of rows": Case("y = MatMul(a, m16)", "MatMul", rows=True),
    "a product of tensors": Case(
        "k = MatMul(a, m16) t = Transpose<perm=[0,2,1]>(k) y = MatMul(a, t)",
        "MatMul Transpose MatMul",
        rows=True,
    ),
    "a softmax": Case("y = Softmax<axis=-1>(a)", "Softmax", rows=True),
    "a softmax over channels": Case("y = Softmax<axis=1>(a)", "Softmax"),
    "attention over heads": Case(
        "r = Reshape(a, heads) q = Transpose<perm=[0,2,1,3]>(r) "
        "k = Transpose<perm=[0,2,3,1]>(r) s = MatMul(q, k) p = Softmax(s) m = MatMul(p, q) "
        "t = Transpose<perm=[0,2,1,3]>(m) y = Reshape(t, merged)",
        "Reshape Transpose Transpose MatMul Softmax MatMul Transpose Reshape",
        rows=True,
    ),
    "GELU": Case(
        "d = Div(a, root) e = Erf(d) s = Add(e, unit) m = Mul(a, s) y = Mul(m, half)",
        "Div+Erf+Add+Mul+Mul",
    ),
    "SiLU": Case("s = Sigmoid(a) y = Mul(a, s)", "Sigmoid+Mul"),
    "HardSwish": Case("y = HardSwish(a)", "HardSwish"),
    "tanh": Case("y = Tanh(a)", "Tanh", rows=True),
    "leaky ReLU": Case("y = LeakyRelu<alpha=0.1>(a)", "LeakyRelu"),
    "an image twice as large": Case(
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", '
        'nearest_mode="floor">(a, , twice)',
        "Resize",
    ),
    "an image twice as large, smoothly": Case(
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(a, , twice)',
        "Resize",
    ),
}

CONSTANTS = {
    "first": normal(8, 8, 1, 1, seed=1),
    "rows": normal(16, 16, seed=1),
    "w38": normal(6, 8, 3, 3, seed=2),
    "w18": normal(8, 8, 1, 1, seed=3),
    "w15": normal(3, 5, 1, 1, seed=3),
    "g6": normal(6, 4, 3, 3, seed=4),
    "d8": normal(8, 1, 3, 3, seed=5),
    "d16": normal(16, 1, 3, 3, seed=6),
    "t86": normal(8, 6, 2, 2, seed=7),
    "t386": normal(8, 6, 3, 3, seed=8),
    "m16": normal(16, 16, seed=9),
    "b6": normal(6, seed=10),
    "b8": normal(8, seed=11),
    "bc": normal(6, 1, 1, seed=12),
    "map": normal(8, 10, 12, seed=13),
    "half": np.array(0.5, np.float32),
    "minus_half": np.array(-0.5, np.float32),
    "root": np.array(np.sqrt(2), np.float32),
    "unit": np.array(1, np.float32),
    "one": np.array([1]),
    "flat": np.array([1, 960]),
    "folded": np.array([1, 12, 80]),
    "heads": np.array([1, 6, 4, 4]),
    "merged": np.array([1, 6, 16]),
    "starts": np.array([1, 2]),
    "ends": np.array([5, -1]),
    "axes": np.array([1, 3]),
    "parts": np.array([5, 3]),
    "around": np.array([0, 0, 1, 2, 0, 0, 0, 1]),
    "twice": np.array([1, 1, 2, 2], np.float32),
}


def quantized(case: Case) -> tuple[Graph, np.ndarray]:
    """Return the quantized graph of a layer and the case behind it, and an input for it."""
    kind, first = (ROWS, "MatMul(x, rows)") if case.rows else (IMAGE, "Conv(x, first)")
    text = f"g ({kind} x) => (float[] y) {{ a = {first} {case.body} }}"
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    graph = small_graph(text, **{n: v for n, v in CONSTANTS.items() if n in words})
    shape = graph.inputs[0].shape
    x = normal(8, *shape[1:], seed=20)
    calibration = Calibration.from_arrays({"x": x}, graph.inputs)
    outcome = Quantize(everywhere=True)(graph, Context(DEVICE, calibration))
    return signed(outcome.graph).sorted(), x[:1]


@pytest.mark.parametrize("name", CASES)
def test_integers_are_within_a_step_of_those_of_onnxruntime(name: str) -> None:
    graph, x = quantized(CASES[name])
    units, _ = on_device(graph)
    assert [unit.op for unit in units[1:]] == CASES[name].ops.split(), str(graph)
    for found, expected in found_and_expected(graph, units, x):
        # Floats just beside a half are rounded to the other side, no more.
        assert np.abs(found - expected).max() <= 1
        assert np.ptp(expected) > 20  # or the case would show nothing


@pytest.mark.parametrize("name", ["GELU", "SiLU", "HardSwish", "tanh", "leaky ReLU"])
def test_functions_of_single_numbers_are_exact(name: str) -> None:
    graph, x = quantized(CASES[name])
    units, _ = on_device(graph)
    found, expected = found_and_expected(graph, units, x)[1]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if "Softmax" not in c.ops and "Resize" not in c.ops]
)
def test_the_smaller_devices_take_them_as_well(name: str) -> None:
    graph, _ = quantized(CASES[name])
    units, _ = on_device(graph, U55)
    assert [unit.op for unit in units[1:]] == CASES[name].ops.split()


def test_devices_with_8_bit_tables_leave_a_softmax_to_the_cpu_and_say_why() -> None:
    graph, _ = quantized(CASES["a softmax"])
    units, notes = on_device(graph, U55)
    assert [unit.op for unit in units] == ["MatMul"]
    (said,) = [note.reason for note in notes if note.node.startswith("Softmax")]
    assert said == "Softmax: a softmax needs tables of 16 bits, which this device has not"
