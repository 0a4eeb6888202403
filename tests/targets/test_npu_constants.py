"""Constants and attributes that a device's operators must read as ONNX does, or leave alone."""

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.npu_units import between, found_and_expected, on_device
from tilewright.graph import Graph

BYTES = (np.arange(16 * 16) % 251 - 125).astype(np.int8).reshape(16, 16)
FINE = np.array(1 / 512, np.float32)


def is_right(graph: Graph, *shape: int) -> None:
    """Check that the device takes the one unit, and its integers are those of onnxruntime."""
    units, notes = on_device(graph)
    assert len(units) == 1, notes
    ((found, expected),) = found_and_expected(graph, units, 3 * normal(*shape))
    # Floats just beside a half are rounded to the other side, no more.
    assert np.abs(found - expected).max() <= 1
    assert np.ptp(expected) > 20  # or the case would show nothing


def is_left(graph: Graph, said: str) -> None:
    """Check that the device takes nothing, and that this is why."""
    units, notes = on_device(graph)
    assert not units
    assert any(said in note.reason for note in notes), notes


def test_a_matrix_of_two_axes_runs() -> None:
    body = "w = DequantizeLinear(b, s) r = MatMul(f, w)"
    is_right(between(body, "1,6,16", step=1 / 4, b=BYTES, s=FINE), 1, 6, 16)


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 16, 12), (4, 16, 16), (16,)])
def test_weights_that_are_no_matrix_are_left_to_the_cpu(shape: tuple[int, ...]) -> None:
    body = "w = DequantizeLinear(b, s) r = MatMul(f, w)"
    weights = np.resize(BYTES, shape)
    x = "4,6,16" if shape[0] == 4 else "1,6,16"
    is_left(between(body, x, b=weights, s=FINE), f"its weights have {len(shape)} axes")


@pytest.mark.parametrize("scale", [0.0, -1 / 512, np.inf, np.nan])
def test_weights_of_a_scale_that_is_none_are_left_to_the_cpu(scale: float) -> None:
    body = "w = DequantizeLinear<axis=1>(b, s) r = MatMul(f, w)"
    scales = np.full(16, FINE)
    scales[5] = scale
    graph = between(body, "1,6,16", b=BYTES, s=scales)
    is_left(graph, "its weights have a scale that is not positive and finite")


def test_a_clamp_of_opset_10_keeps_its_bounds_behind_a_layer() -> None:
    body = "w = DequantizeLinear(b, s) c = MatMul(f, w) r = Clip<min=-2.0, max=1.5>(c)"
    is_right(between(body, "1,6,16", opset=10, step=1 / 16, b=BYTES, s=FINE), 1, 6, 16)


def test_a_clamp_has_bounds_that_are_stored_as_integers() -> None:
    body = (
        "w = DequantizeLinear(b, s) c = MatMul(f, w) high = DequantizeLinear(ten, fine) "
        "r = Clip(c, , high)"
    )
    ten, fine = np.array(10, np.int8), np.array(0.25, np.float32)
    graph = between(body, "1,6,16", step=1 / 8, b=BYTES, s=FINE, ten=ten, fine=fine)
    is_right(graph, 1, 6, 16)


def test_a_clamp_by_a_number_that_is_computed_is_left_to_the_cpu() -> None:
    body = (
        "w = DequantizeLinear(b, s) c = MatMul(f, w) "
        "most = ReduceMax<keepdims=0>(f) m = QuantizeLinear(most, step_in, zero) "
        "high = DequantizeLinear(m, step_in, zero) r = Clip(c, , high)"
    )
    units, notes = on_device(between(body, "1,6,16", b=BYTES, s=FINE))
    assert "MatMul" not in {unit.op for unit in units}
    assert any("bound that is not constant" in note.reason for note in notes), notes


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_constant_stored_as_integers_is_one_like_any_other(op: str) -> None:
    body = f"c = DequantizeLinear(b, s) r = {op}(f, c)"
    graph = between(body, "1,16,16", step=1 / 8, b=BYTES, s=np.array(1 / 32, np.float32))
    is_right(graph, 1, 16, 16)


def test_a_zero_point_that_is_left_out_is_none() -> None:
    body = "w = DequantizeLinear(b, s, ) r = MatMul(f, w)"
    is_right(between(body, "1,6,16", step=1 / 4, b=BYTES, s=FINE), 1, 6, 16)


def test_a_softmax_of_opset_12_is_taken_over_the_last_axis_alone() -> None:
    rows = between("r = Softmax<axis=2>(f)", "1,6,16", opset=12, step=1 / 256)
    is_right(rows, 1, 6, 16)
    is_right(between("r = Softmax(f)", "6,16", opset=12, step=1 / 256), 6, 16)
    for given in ("", "<axis=1>"):
        graph = between(f"r = Softmax{given}(f)", "1,6,16", opset=12, step=1 / 256)
        is_left(graph, "before opset 13 a softmax is of all axes from one on")


def test_a_gemm_adds_one_number_to_each_output() -> None:
    body = "w = DequantizeLinear(b, s) r = Gemm(f, w, c)"
    for shape in ((16,), (1, 16), (1,), (1, 1)):
        c = normal(*shape, seed=3)
        is_right(between(body, "16,16", step=1 / 4, b=BYTES, s=FINE, c=c), 16, 16)


def test_a_gemm_that_adds_one_number_to_each_row_is_left_to_the_cpu() -> None:
    body = "w = DequantizeLinear(b, s) r = Gemm(f, w, c)"
    graph = between(body, "16,16", b=BYTES, s=FINE, c=normal(16, 1))
    is_left(graph, "its bias is no number for each output")


@pytest.mark.parametrize("value", [-np.inf, np.inf, -1e30, 0.0])
def test_padding_is_as_far_as_int8_goes(value: float) -> None:
    around = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    pad = between("r = Pad(f, a, v)", "1,4,6,6", a=around, v=np.array(value, np.float32))
    is_right(pad, 1, 4, 6, 6)


def test_padding_by_nan_is_left_to_the_cpu() -> None:
    around = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    pad = between("r = Pad(f, a, v)", "1,4,6,6", a=around, v=np.array(np.nan, np.float32))
    is_left(pad, "it pads by NaN")


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_become_pixels(mode: str) -> None:
    body = f'r = DepthToSpace<blocksize=2, mode="{mode}">(f)'
    is_right(between(body, "1,12,3,5"), 1, 12, 3, 5)
