"""Layer normalizations that older exports spell out in pieces."""

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.graph import Graph, is_constant

# The first opset that has the operator.
LAYER_NORM_OPSET = 17


def recognize_layer_norms(graph: Graph) -> Graph:
    """Return the graph with spelled-out layer normalizations over the last axis as one node.

    The pattern is (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias. The
    operator is there from opset 17 on; for an older graph the result is for lowering only.
    """
    edited = graph.edit()
    for node in list(edited.gs.nodes):
        if node.op == "ReduceMean":
            _replace(edited.gs, node)
    edited.gs.cleanup(remove_unused_graph_inputs=False).toposort()
    return edited


def _replace(graph: gs.Graph, mean: gs.Node) -> None:
    x = mean.inputs[0]
    if x.shape is None or x.dtype != np.float32 or not _over_last_axis(mean, len(x.shape)):
        return
    subtract = _only_reader(mean, "Sub")
    if subtract is None or subtract.inputs[0] is not x:
        return
    centered = subtract.outputs[0]
    power = next((n for n in centered.outputs if _squares(n, centered)), None)
    divide = next((n for n in centered.outputs if n.op == "Div"), None)
    if power is None or divide is None or len(centered.outputs) != 2 + (power.op == "Mul"):
        return
    variance = _only_reader(power, "ReduceMean")
    if variance is None or not _over_last_axis(variance, len(x.shape)):
        return
    shifted = _only_reader(variance, "Add")
    root = None if shifted is None else _only_reader(shifted, "Sqrt")
    if shifted is None or root is None or divide.inputs[1] is not root.outputs[0]:
        return
    epsilon = _constant_of(shifted)
    scaled = _only_reader(divide, "Mul")
    scale = None if scaled is None else _constant_of(scaled)
    if epsilon is None or epsilon.size != 1 or scaled is None or scale is None:
        return
    added = _only_reader(scaled, "Add")
    bias = None if added is None else _constant_of(added)
    width = x.shape[-1]
    if added is None or bias is None:
        return
    if any(v.size != width or v.shape[-1:] != (width,) for v in (scale, bias)):
        return
    # One of more axes than x has would give the result as many.
    if any(v.ndim > len(x.shape) for v in (scale, bias)):
        return
    out = added.outputs[0]
    added.outputs.clear()
    graph.nodes.append(
        gs.Node(
            "LayerNormalization",
            name=added.name,
            attrs={"axis": -1, "epsilon": float(epsilon.reshape(-1)[0])},
            inputs=[
                x,
                gs.Constant(f"{added.name}.scale", scale.reshape(-1)),
                gs.Constant(f"{added.name}.bias", bias.reshape(-1)),
            ],
            outputs=[out],
        )
    )


def _only_reader(node: gs.Node, op: str) -> gs.Node | None:
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 and readers[0].op == op else None


def _squares(node: gs.Node, x: gs.Tensor) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is x and node.inputs[1] is x
    if node.op != "Pow" or not is_constant(node.inputs[1]):
        return False
    return bool(np.all(node.inputs[1].values == 2))


def _over_last_axis(node: gs.Node, rank: int) -> bool:
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and is_constant(node.inputs[1]):
        axes = node.inputs[1].values.tolist()
    return (
        bool(axes) and [a % rank for a in axes] == [rank - 1] and node.attrs.get("keepdims", 1)
    )


def _constant_of(node: gs.Node) -> np.ndarray | None:
    values = [t.values for t in node.inputs if is_constant(t)]
    return np.asarray(values[0]) if len(values) == 1 else None
