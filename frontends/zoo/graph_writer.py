"""Write an ONNX graph node by node, with a readable name for every node and value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9  # the newest that runtimes for opset 17 accept


class GraphWriter:
    """Collects nodes and weights; each node has one output, and both carry the same name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def op(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output, which is `name`."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: NDArray[np.generic]) -> str:
        """Add an initializer and return its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def constant(self, values: object, dtype: type[np.generic] = np.float32) -> str:
        """Return the name of a small initializer, shared by all users of equal values."""
        array = np.array(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self.constants:
            text = "_".join(str(v) for v in array.ravel().tolist())
            self.constants[key] = self.weight(f"constant_{array.dtype.name}_{text}", array)
        return self.constants[key]

    def ints(self, *values: int) -> str:
        """Return the name of a shared int64 vector, as Reshape, Slice and others want it."""
        return self.constant(values, np.int64)

    def linear(
        self, name: str, x: str, weight: NDArray[np.generic], bias: NDArray[np.generic]
    ) -> str:
        """Add x @ weight + bias; `weight` is (in, out), `bias` is (out,)."""
        product = self.op("MatMul", f"{name}.matmul", x, self.weight(f"{name}.weight", weight))
        return self.op("Add", name, product, self.weight(f"{name}.bias", bias))

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Return everything written so far as a model."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="tilewright-zoo"
        )


def value(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Describe a graph input or output; a text in `shape` is a symbolic dimension."""
    return helper.make_tensor_value_info(name, dtype, shape)
