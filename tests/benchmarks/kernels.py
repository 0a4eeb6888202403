"""Time the tile kernel on layers of real models, as a share of what the machine can multiply.

    python tests/benchmarks/kernels.py --threads 2 --sparsity 0,0.6 --precision fp32,int8

One row a layer: positions x inputs x outputs, the median and least time, billions of
operations a second on the weights that are not zero, and their share of the peak: independent
multiply-adds on registers, measured before and after, since machines change their speed. For
int8 the peak is four times that of floats, which is what vpdpbusd does; AMX may exceed it.
Zeros are whole tiles, at random.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import tvm

from tilewright.graph import Graph
from tilewright.measurement import Samples, sample
from tilewright.protocol import silent
from tilewright.target import read_target
from tilewright.targets import FOLDER
from tilewright.targets.cpu import CpuBackend, isa_of
from tilewright.targets.cpu_program import prepare_pool
from tilewright.targets.kernels.pen import Pen, launch_memory, write_prim_func
from tilewright.targets.kernels.vector_math import number
from tilewright.targets.lower.module import (
    KERNEL_PIPELINE,
    llvm_target,
    register_kernel_pipeline,
)
from tilewright.targets.lower.window import LINE
from tilewright.tools.console import Console

CPU = read_target(FOLDER / "cpu.toml")
# Positions, inputs, outputs.
LAYERS = {
    "reference": [(192, 768, 3072)],
    "minilm": [(64, 384, 384), (64, 384, 1536), (64, 1536, 384)],
    "vit-saliency": [(257, 384, 1152), (257, 384, 384), (257, 384, 1536), (257, 1536, 384)],
    "ppocr-rec": [(40, 120, 360), (40, 120, 240), (480, 192, 192), (120, 384, 384)],
    "efficientnet-lite0": [(3136, 24, 144), (784, 240, 40), (196, 672, 112), (49, 192, 1152)],
    "smollm2": [(256, 576, 576), (256, 576, 1536), (256, 1536, 576), (1, 576, 1536)],
}
REPEATS = 60
ACCUMULATORS, ROUNDS = 24, 200_000


def peak(threads: int) -> float:
    """Return the GFLOP/s that so many threads reach on registers."""
    isa = isa_of(CPU)
    lanes = isa.lanes
    count = min(ACCUMULATORS, isa.registers - 6)

    def body(pen: Pen) -> None:
        with pen.shared() as share:
            rounds = pen.load(1, 0)
            sums = [pen.local(lanes) for _ in range(count)]
            for cell in sums:
                cell.store(0, number(0.0, "float32", lanes), lanes)
            factors = [pen.register(pen.load(0, i * lanes, lanes)) for i in range(4)]
            with pen.serial(rounds):
                for i, cell in enumerate(sums):
                    scaled = cell.load(0, lanes) * factors[i % 3]
                    cell.store(0, scaled + factors[3], lanes)
            total = sum((c.load(0, lanes) for c in sums[1:]), sums[0].load(0, lanes))
            pen.store(0, (share.index + 4) * lanes, total, lanes)

    register_kernel_pipeline()
    function = write_prim_func("peak", isa, ("float32", "indices"), body)
    built = tvm.compile(
        tvm.IRModule({"peak": function}), target=llvm_target(isa), tir_pipeline=KERNEL_PIPELINE
    )
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    floats = tvm.runtime.tensor(np.full(lanes * (threads + 4), 0.5, np.float32))
    rounds = tvm.runtime.tensor(np.full(16, ROUNDS, np.int32))
    launch = tvm.runtime.tensor(launch_memory(threads))
    taken = sample(lambda: built["peak"](floats, rounds, launch, 0, 0), 20, warm_up=3)
    return threads * count * lanes * 2 * ROUNDS / taken.min_ms / 1e6


def layer(
    positions: int, inputs: int, outputs: int, sparsity: float, precision: str, threads: int
) -> tuple[Samples, float]:
    """Return the times of one layer, and the operations of its non-zeros."""
    r = np.random.default_rng(0)
    weights = r.integers(1, 127, (inputs, outputs)).astype(np.float32)
    rows = CPU.order_for(positions, precision).tile.outputs
    for first in range(0, outputs, rows):
        weights[r.permutation(inputs)[: round(sparsity * inputs)], first : first + rows] = 0
    # Activations as layers before leave them: inputs over positions, each on a new cache line.
    stride = -(-positions // LINE) * LINE
    dtype, w_dtype = ("float", "float32") if precision == "fp32" else ("uint8", "int8")
    floats = (
        ""
        if precision == "fp32"
        else ("p = DequantizeLinear(t, scale, zero)  q = DequantizeLinear(w, scale, none)")
    )
    left, right = ("t", "w") if precision == "fp32" else ("p", "q")
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 17]>
        g ({dtype}[{inputs},{stride}] x) => (float[{positions},{outputs}] y)
        <int64[1] start = {{0}}, int64[1] end = {{{positions}}}, int64[1] axis = {{1}},
         float scale = {{0.01}}, uint8 zero = {{7}}, int8 none = {{0}}> {{
            s = Slice(x, start, end, axis)  t = Transpose(s)  {floats}
            y = MatMul({left}, {right})
        }}"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights.astype(w_dtype), "w"))
    graph = Graph.from_onnx(model).infer_shapes()
    with tempfile.TemporaryDirectory() as folder:
        CpuBackend().build([graph], CPU, Path(folder), silent)
        executable = CpuBackend().load(Path(folder), threads)
    x = r.integers(0, 255, (inputs, stride))
    executable({"x": x.astype("float32" if precision == "fp32" else "uint8")})
    taken = sample(executable.run_parts, REPEATS, warm_up=5)
    return taken, 2.0 * positions * np.count_nonzero(weights)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(LAYERS), help="names, joined by commas")
    parser.add_argument("--sparsity", default="0,0.6", help="shares, joined by commas")
    parser.add_argument("--precision", default="fp32", help="fp32, int8 or both, by a comma")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    prepare_pool(given.threads)
    before = peak(given.threads)
    rows, shares = [], []
    for model, precision in product(given.models.split(","), given.precision.split(",")):
        top = before * (4 if precision == "int8" else 1)
        for shape, share in product(LAYERS[model], map(float, given.sparsity.split(","))):
            taken, operations = layer(*shape, share, precision, given.threads)
            speed = operations / taken.min_ms / 1e6
            shares.append(speed / top)
            rows.append(
                (
                    model,
                    " x ".join(map(str, shape)),
                    precision,
                    f"{share:g}",
                    f"{taken.min_ms * 1e3:.1f}, {taken.median_ms * 1e3:.1f}",
                    f"{speed:.0f}",
                    f"{speed / top:.0%}",
                )
            )
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    console = Console(as_json=False)
    columns = ("model", "layer", "", "sparsity", "us (min, median)", "Gop/s", "of the peak")
    console.table(columns, rows)
    mean = float(np.exp(np.mean(np.log(shares))))
    console.text(
        f"Peak on {given.threads} threads: {before:.0f} GFLOP/s before, "
        f"{peak(given.threads):.0f} after. Geometric mean of the shares: {mean:.0%}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
