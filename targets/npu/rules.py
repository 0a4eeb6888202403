"""Which function lowers units of which operator."""

from tilewright.targets.npu.elementwise import addition, function, multiplication
from tilewright.targets.npu.layers import convolution, product, transposed
from tilewright.targets.npu.lower import Rule
from tilewright.targets.npu.pools import (
    average,
    global_average,
    global_largest,
    largest,
    reduction,
)
from tilewright.targets.npu.resize import resizing
from tilewright.targets.npu.softmax import softmax
from tilewright.targets.npu.views import (
    concatenation,
    cut,
    padding,
    reshaping,
    split,
    transposition,
    unfolding,
)

RULES: dict[str, Rule] = {
    "": function,
    "Add": addition,
    "AveragePool": average,
    "Concat": concatenation,
    "Conv": convolution,
    "ConvTranspose": transposed,
    "DepthToSpace": unfolding,
    "Flatten": reshaping,
    "Gemm": product,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_largest,
    "MatMul": product,
    "MaxPool": largest,
    "Mul": multiplication,
    "Pad": padding,
    "ReduceMax": reduction,
    "ReduceMean": reduction,
    "ReduceSum": reduction,
    "Reshape": reshaping,
    "Resize": resizing,
    "Slice": cut,
    "Softmax": softmax,
    "Split": split,
    "Squeeze": reshaping,
    "Sub": addition,
    "Transpose": transposition,
    "Unsqueeze": reshaping,
}
