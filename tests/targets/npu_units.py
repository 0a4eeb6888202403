"""Units of quantized graphs, one by one in the TOSA reference model and in onnxruntime."""

import numpy as np
import pytest

from tests.small_models import small_model
from tilewright import oracle
from tilewright.graph import Graph, with_outputs
from tilewright.protocol import Note, silent
from tilewright.targets.npu.signed import signed
from tilewright.targets.npu.units import Unit

MISSING = "the extra [npu] is not installed"
program = pytest.importorskip("tilewright.targets.npu.program", reason=MISSING)
regions = pytest.importorskip("tilewright.targets.npu.regions", reason=MISSING)
vela = pytest.importorskip("tilewright.targets.npu.vela", reason=MISSING)
pytest.importorskip("tosa_reference_model", reason=MISSING)
pytest.importorskip("ethosu", reason=MISSING)

U85 = vela.Device("ethos-u85-256", "Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB")
U55 = vela.Device("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")


def between(
    body: str, shape: str, opset: int = 17, step: float = 1 / 16, **constants: np.ndarray
) -> Graph:
    """Return a graph of int8: x becomes f, the body makes r of f, and r becomes y.

    `step` is the scale of y; that of x is 1/16.
    """
    text = f"""g (float[{shape}] x) => (float[] y) {{
        q = QuantizeLinear(x, step_in, zero) f = DequantizeLinear(q, step_in, zero) {body}
        p = QuantizeLinear(r, step_out, zero) y = DequantizeLinear(p, step_out, zero)
    }}"""
    own: dict[str, np.ndarray] = {
        "step_in": np.array(1 / 16, np.float32),
        "step_out": np.array(step, np.float32),
        "zero": np.array(3, np.int8),
    }
    graph = Graph.from_onnx(small_model(text, opset, **own, **constants)).infer_shapes()
    return signed(graph).sorted()


def on_device(graph: Graph, device: object = U85) -> tuple[list[Unit], list[Note]]:
    """Return the units that a device takes, and why it leaves the others."""
    units, notes = regions.taken_units(graph, device, silent)
    return units, notes


def found_and_expected(
    graph: Graph, units: list[Unit], x: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the integers of each unit, alone in the reference model and in onnxruntime."""
    names = sorted({t.name for u in units for t in (*u.inputs, u.out.tensor)})
    values = oracle.run(with_outputs(graph, names), {"x": x})
    pairs = []
    for unit in units:
        region = regions.lowered(graph, [unit], U85)
        fed = [
            np.ascontiguousarray(values[v.tensor.name].transpose(v.axes)) for v in region.inputs
        ]
        (flat,) = program.run_tosa(region.data, fed, unit.name)
        (out,) = region.outputs
        found = flat.reshape(out.tensor.shape).transpose(np.argsort(out.axes))
        pairs.append((found.astype(int), values[unit.out.tensor.name].astype(int)))
    return pairs
