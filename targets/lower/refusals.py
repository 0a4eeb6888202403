"""What no kernel here runs, and why: what operators, dtypes and shapes alone tell."""

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import is_constant, static_shape
from tilewright.nbits import OPERATOR, UNSUPPORTED, has_blocks
from tilewright.targets.kernels.elementwise import OPERATORS
from tilewright.targets.lower.chains import DTYPES, is_elementwise
from tilewright.targets.lower.views import VIEWS

# Anchors that move elements and do not compute with them.
ANY_DTYPE = frozenset({"Concat", "Gather", "Pad"})
# Anchors whose kernels end in a chain.
FUSING = frozenset(
    {"Conv", "Gemm", "MatMul", "MatMulNBits", "MaxPool", "AveragePool", "GlobalAveragePool"}
    | {"LayerNormalization"}
    | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"}
)


def follows(node: gs.Node) -> bool:
    """Say whether a node may run on the results of another kernel."""
    return is_elementwise(node) and node.op != "DequantizeLinear"


def refusal(node: gs.Node, anchors: Collection[str]) -> str | None:
    """Say why no kernel here runs a node, or None; `anchors` are operators with kernels."""
    if node.domain not in (None, "", "ai.onnx") and not has_blocks(node):
        why = UNSUPPORTED if node.op == OPERATOR else "is not a standard operator"
        return f"{node.domain}.{node.op} {why}"
    known = node.op in VIEWS or node.op in anchors
    if not known and node.op not in OPERATORS:
        return f"{node.op} has no kernel"
    for tensor in [*node.inputs, *node.outputs]:
        if not tensor.name:
            continue
        shape = static_shape(tensor)
        if shape is None:
            return f'the shape of "{tensor.name}" is known only at run time'
        if 0 in shape and not (is_constant(tensor) or node.op == "Concat"):
            return f'"{tensor.name}" is empty'
        dtype = "?" if tensor.dtype is None else np.dtype(tensor.dtype).name
        if dtype not in DTYPES:
            return f'"{tensor.name}" is {dtype}'
    if not known and not is_elementwise(node):
        return f"{node.op} of these dtypes or attributes has no kernel"
    return None
