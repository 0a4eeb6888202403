"""Estimate the tile kernels' cycles on Arm cores, dense and sparse, layer by layer.

    python tests/benchmarks/arm.py --targets arm-edge-a72,arm-edge-neoverse-n1

Layers are those of real models: products of minilm, pointwise convolutions of
efficientnet-lite0. Weights are random; the sparse ones lack 60 % of the target's own tiles.
Printed are estimated cycles of one core, how near to what the multiply-adds alone would take
("bound": so many vectors a cycle as the core's pipes), and how many times fewer cycles the
sparse kernel takes; in brackets without the time that caches wait for memory. Needs qemu-user,
llvm-19 and a cross compiler; no board is timed.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.protocol import silent
from tilewright.target import Target
from tilewright.tools.find_target import find_backend, find_target

# Vectors of four float32 that a core multiplies and adds in a cycle: Arm's Cortex-A72 Software
# Optimization Guide, Cortex-A76 Software Optimization Guide (FMLA, Q form).
VECTORS_A_CYCLE = {"cortex-a72": 1, "neoverse-n1": 2}
# Name: outputs, inputs, positions (a product's rows; a map's height and width).
LAYERS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "minilm query": (384, 384, (128,)),
    "minilm up": (1536, 384, (128,)),
    "minilm down": (384, 1536, (128,)),
    "lite0 96 -> 24": (24, 96, (56, 56)),
    "lite0 24 -> 144": (144, 24, (56, 56)),
    "lite0 144 -> 40": (40, 144, (28, 28)),
    "lite0 40 -> 240": (240, 40, (28, 28)),
    "lite0 240 -> 80": (80, 240, (14, 14)),
    "lite0 80 -> 480": (480, 80, (14, 14)),
    "lite0 480 -> 112": (112, 480, (14, 14)),
    "lite0 672 -> 192": (192, 672, (7, 7)),
    "lite0 1152 -> 320": (320, 1152, (7, 7)),
    "lite0 320 -> 1280": (1280, 320, (7, 7)),
}


def layer_model(weights: np.ndarray, positions: tuple[int, ...]) -> Graph:
    """Return a model of one layer: a product, or a pointwise convolution."""
    outputs, inputs = weights.shape
    if len(positions) == 1:
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
        stored, shapes = weights.T, ([1, *positions, inputs], [1, *positions, outputs])
    else:
        node = helper.make_node("Conv", ["x", "w"], ["y"], name="layer")
        stored = weights.reshape(outputs, inputs, 1, 1)
        shapes = ([1, inputs, *positions], [1, outputs, *positions])
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("xy", shapes, strict=True)
    )
    held = onnx.numpy_helper.from_array(np.ascontiguousarray(stored), "w")
    graph = helper.make_graph([node], "layer", [x], [y], [held])
    opset = helper.make_opsetid("", 17)
    return Graph.from_onnx(helper.make_model(graph, opset_imports=[opset])).infer_shapes()


def without_tiles(
    weights: np.ndarray, graph: Graph, target: Target, share: float
) -> np.ndarray:
    """Return weights that lack a share of the target's tiles, the same in each row of tiles."""
    (layer,) = linear_layers(graph)
    rows = target.tile_for(layer).outputs
    rng = np.random.default_rng(1)
    kept = weights.copy()
    for first in range(0, len(weights), rows):
        gone = rng.permutation(weights.shape[1])[: round(share * weights.shape[1])]
        kept[first : first + rows, gone] = 0
    return kept


def cycles_of(graph: Graph, target: Target) -> np.ndarray:
    """Return the estimated cycles of a model's kernels: all, and without waits for memory."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        backend = find_backend(target.backend)
        backend.build([graph], target, Path(folder), silent)
        found = backend.estimate(Path(folder), target, silent)
        assert found is not None, "QEMU and LLVM are needed: see above"
        written = json.loads((Path(folder) / "estimate.json").read_text(encoding="utf-8"))
    core = sum(kernel["core_cycles"] for kernel in written["kernels"])
    return np.array([written["cycles"], core])


def row(name: str, target: Target, sparsity: float) -> str:
    """Return a row of the table: a layer, dense and sparse, on a target."""
    outputs, inputs, positions = LAYERS[name]
    weights = np.random.default_rng(0).standard_normal((outputs, inputs)).astype(np.float32)
    graph = layer_model(weights, positions)
    dense = cycles_of(graph, target)
    pruned = without_tiles(weights, graph, target, sparsity)
    sparse = cycles_of(layer_model(pruned, positions), target)
    each = VECTORS_A_CYCLE[target.settings["emulated"]["llvm_mca_cpu"]] * 4
    near = outputs * inputs * int(np.prod(positions)) / each / dense
    fewer = dense / sparse
    return (
        f"| {target.name} | {name} | {dense[0]:,} | {near[0]:.0%} ({near[1]:.0%}) "
        f"| {sparse[0]:,} | {fewer[0]:.2f} ({fewer[1]:.2f}) |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="arm-edge-a72,arm-edge-neoverse-n1")
    parser.add_argument("--layers", default=",".join(LAYERS), help="names, joined by commas")
    parser.add_argument("--sparsity", type=float, default=0.6)
    wanted = parser.parse_args()
    print("| target | layer | dense cycles | bound of dense | sparse cycles | fewer |")
    print("|---|---|---|---|---|---|", flush=True)
    targets = [find_target(name) for name in wanted.targets.split(",")]
    for target in targets:
        for name in wanted.layers.split(","):
            print(row(name, target, wanted.sparsity), flush=True)


if __name__ == "__main__":
    main()
