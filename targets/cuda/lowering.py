"""From a graph to scheduled kernels: ONNX to Relax, our products, TVM's fusion, threads."""

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import onnx
from tvm import tirx
from tvm.relax import transform
from tvm.relax.frontend.onnx import from_onnx

from tilewright.errors import CannotLower
from tilewright.graph import Graph, static_shape
from tilewright.targets.cuda.constants import move_constants

# Builds the Relax expression that an operator's call becomes.
Legalize = Callable[[Any, Any], Any]


def to_relax(graph: Graph) -> Any:
    """Return a graph as a Relax module. Raises CannotLower naming nodes that TVM refuses."""
    _check_shapes(graph)
    try:
        return _imported(graph.to_onnx())
    except Exception as error:  # TVM's frontend raises whatever its converters ran into
        raise CannotLower(_refusals(graph, error)) from error


def fuse(module: Any, products: Mapping[str, Legalize], target: Any) -> Any:
    """Return the module as calls of functions; `products` builds those of some operators."""
    with target:
        for step in (
            transform.DecomposeOpsForInference(),
            transform.LegalizeOps({**move_constants(), **products}),
            transform.CanonicalizeBindings(),
            transform.AnnotateTIROpPattern(),
            transform.FuseOps(),
            transform.FuseTIR(),
            transform.RewriteDataflowReshape(),
            transform.DeadCodeElimination(),
        ):
            module = step(module)
    return module


def prim_funcs(module: Any) -> dict[str, Any]:
    """Return a module's kernels by name."""
    return {
        str(variable.name_hint): function
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }


def _check_shapes(graph: Graph) -> None:
    for tensor in graph.inputs:
        shape = static_shape(tensor)
        if shape is None:
            raise CannotLower(
                f'The gpu target needs fixed shapes, and input "{tensor.name}" has shape '
                f"{tensor.shape}. Bind its dimensions with --dim NAME=N."
            )
        if 0 in shape:
            raise CannotLower(
                f'The gpu target has no kernels for nothing, and input "{tensor.name}" has '
                f"shape {list(shape)}. Give each of its dimensions 1 or more."
            )


def _imported(model: onnx.ModelProto) -> Any:
    # The frontend prints what it fails at, and warns of what it assumes.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_onnx(model)


def _refusals(graph: Graph, error: Exception) -> str:
    """Say which nodes TVM cannot import by themselves; the whole model's error if none."""
    whole = graph.to_onnx()
    known = {info.name: info for info in (*whole.graph.value_info, *whole.graph.input)}
    known |= {info.name: info for info in whole.graph.output}
    found = []
    for node in whole.graph.node:
        try:
            _imported(_alone(node, whole, known))
        except Exception as refusal:  # as in to_relax
            found.append(f"{node.op_type} {node.name} ({_first_line(refusal)})")
    told = "; ".join(found) or f"the whole model ({_first_line(error)})"
    return (
        f"TVM cannot import for gpu: {told}. Change or remove these nodes, "
        "or compile for cpu, which runs them in onnxruntime."
    )


def _alone(
    node: onnx.NodeProto, whole: onnx.ModelProto, known: Mapping[str, onnx.ValueInfoProto]
) -> onnx.ModelProto:
    weights = [t for t in whole.graph.initializer if t.name in node.input]
    names = {t.name for t in weights}
    inputs = [known[n] for n in dict.fromkeys(node.input) if n in known and n not in names]
    outputs = [known[n] for n in node.output if n in known]
    graph = onnx.helper.make_graph([node], "alone", inputs, outputs, weights)
    return onnx.helper.make_model(
        graph, opset_imports=whole.opset_import, ir_version=whole.ir_version
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
