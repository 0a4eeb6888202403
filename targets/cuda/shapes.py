"""Shapes and dtypes of Relax expressions."""

from typing import Any

from tvm import relax, tirx


def tensor_shape(expression: Any) -> tuple[int, ...] | None:
    """Return the shape of a Relax tensor, or None where it is not known."""
    shape = getattr(expression.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr):
        return None
    if not all(isinstance(extent, tirx.IntImm) for extent in shape.values):
        return None
    return tuple(int(extent) for extent in shape.values)


def is_float32(*expressions: Any) -> bool:
    """Say whether Relax tensors are all float32."""
    return all(str(expression.ty.dtype) == "float32" for expression in expressions)
