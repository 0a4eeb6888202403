"""Anchors: which operator is lowered by what."""

from tilewright.layers import linear_layer
from tilewright.targets.lower.attention import lower_attention
from tilewright.targets.lower.copies import lower_concat, lower_gather, lower_pad
from tilewright.targets.lower.integer import lower_integers
from tilewright.targets.lower.layer import lower_layer
from tilewright.targets.lower.lowering import Lower, Lowering
from tilewright.targets.lower.nibbles import lower_nibbles
from tilewright.targets.lower.planes import lower_depthwise, lower_pool
from tilewright.targets.lower.product import lower_product
from tilewright.targets.lower.reductions import (
    lower_layer_norm,
    lower_reduce,
    lower_softmax,
)
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.resize import lower_resize
from tilewright.targets.lower.transposed import lower_conv_transpose


def lower_conv(lowering: Lowering, region: Region) -> None:
    """Lower a convolution: dense ones to a tile kernel, depthwise ones plane by plane."""
    layer = linear_layer(region.anchor)
    if layer is not None and layer.is_depthwise:
        lower_depthwise(lowering, region)
    else:
        lower_matrix(lowering, region)


def lower_matmul(lowering: Lowering, region: Region) -> None:
    """Lower MatMul: by a constant matrix to a tile kernel, else as a product."""
    if linear_layer(region.anchor) is not None:
        lower_matrix(lowering, region)
    else:
        lower_product(lowering, region)


def lower_matrix(lowering: Lowering, region: Region) -> None:
    """Lower a layer: to integers where both sides are quantized, else to floats."""
    if lowering.integers(region.anchor) is not None:
        lower_integers(lowering, region)
    else:
        lower_layer(lowering, region)


ANCHORS: dict[str, Lower] = {
    "Attention": lower_attention,
    "Conv": lower_conv,
    "Gemm": lower_matrix,
    "MatMul": lower_matmul,
    "MatMulNBits": lower_nibbles,
    "ConvTranspose": lower_conv_transpose,
    "MaxPool": lower_pool,
    "AveragePool": lower_pool,
    "GlobalAveragePool": lower_reduce,
    "Softmax": lower_softmax,
    "LogSoftmax": lower_softmax,
    "LayerNormalization": lower_layer_norm,
    "Concat": lower_concat,
    "Gather": lower_gather,
    "Resize": lower_resize,
    "Pad": lower_pad,
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"),
        lower_reduce,
    ),
}
