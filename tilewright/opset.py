"""Newer operator sets: what a model must speak before a pass can say something in it."""

import onnx
from onnx import version_converter

from tilewright.errors import UnusableInput
from tilewright.graph import Graph


def with_opset(graph: Graph, least: int) -> Graph:
    """Return a graph whose standard operators are of version `least` or later.

    Raises UnusableInput where onnx cannot convert the model.
    """
    if graph.opset >= least:
        return graph
    try:
        converted = version_converter.convert_version(graph.to_onnx(), least)
        onnx.checker.check_model(converted)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise UnusableInput(
            f"The model is of opset {graph.opset}, and this needs {least}, which onnx cannot "
            f"convert it to: {error}. Export the model with opset {least} or later."
        ) from error
    return Graph.from_onnx(converted).sorted().infer_shapes()
