"""Constants of a Relax module, and operators that only move them about.

TVM's FoldConstant computes these when it compiles, too, but compiles a function for each.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst

from tilewright.targets.cuda.shapes import tensor_shape


def constant_of(builder: Any, expression: Any) -> np.ndarray | None:
    """Return the values of an expression that is a constant, or a name for one."""
    if isinstance(expression, relax.Var):
        expression = builder.lookup_binding(expression)
    return values_of(expression) if isinstance(expression, GenericConst) else None


def values_of(constant: Any) -> np.ndarray:
    """Return the values of a Relax constant."""
    return np.asarray(constant.value.numpy())


def move_constants() -> dict[str, Callable[[Any, Any], Any]]:
    """Return what builds operators that move data, by operator: constants move now."""
    reshaping = ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten")
    return {**dict.fromkeys(reshaping, _reshape), "relax.permute_dims": _permute}


def _reshape(builder: Any, call: Any) -> Any:
    values, shape = constant_of(builder, call.args[0]), tensor_shape(call)
    if values is None or shape is None:
        return legalized(builder, call)
    return relax.const(values.reshape(shape))


def _permute(builder: Any, call: Any) -> Any:
    values = constant_of(builder, call.args[0])
    if values is None:
        return legalized(builder, call)
    axes = None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
    return relax.const(np.ascontiguousarray(values.transpose(axes)))


def legalized(builder: Any, call: Any) -> Any:
    """Return a call as TVM's own kernel."""
    return call.op.get_attr("FLegalize")(builder, call)
