"""Weights and biases of layers, as the device adds and multiplies them."""

from typing import NamedTuple

import numpy as np

from tilewright.targets.npu.lower import constant_of, root_of
from tilewright.targets.npu.operands import Refused, Weights
from tilewright.targets.npu.units import Unit

# In steps of a sum: half of what int32 holds is left for the products.
_MOST_BIAS = float(1 << 30)


class Matrix(NamedTuple):
    """Weights as int8, `scales` by output, and a bias in steps of the sums, int32."""

    values: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


def weights_of(unit: Unit) -> Weights:
    """Return a layer's weights. Raises Refused where they are not constant int8."""
    weights = unit.operands[1]
    if not isinstance(weights, Weights):
        raise Refused("its weights are not constant int8")
    return weights


def matrix_of(unit: Unit, axis: int, step: float) -> Matrix:
    """Return weights whose outputs are counted along `axis`, for inputs of a scale `step`."""
    weights = weights_of(unit)
    if len(weights.scales) > 1 and weights.axis % weights.values.ndim != axis:
        raise Refused("its weights have scales by input")
    if not ((weights.scales > 0) & np.isfinite(weights.scales)).all():
        raise Refused("its weights have a scale that is not positive and finite")
    rows = np.moveaxis(weights.values, axis, 0)
    rows = rows.reshape(len(rows), -1)
    scales = np.broadcast_to(weights.scales.astype(np.float64), (len(rows),))
    bias = _bias(unit, len(rows))
    # Where weights are next to nothing beside their bias, larger steps are fine enough.
    least = np.abs(bias) / (step * _MOST_BIAS)
    coarse = np.maximum(scales, least)
    if (coarse > scales).any():
        rows = np.rint(rows * (scales / coarse)[:, None]).astype(np.int8)
    return Matrix(rows, coarse, np.rint(bias / (step * coarse)).astype(np.int32))


def _bias(unit: Unit, outputs: int) -> np.ndarray:
    """Return what is added to each output, inside the operator or behind it, as floats."""
    node = root_of(unit)
    alpha, beta = (float(node.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha <= 0:
        raise Refused(f"its alpha is {alpha}")
    total = np.zeros(outputs)
    inner = None if node.op == "MatMul" else constant_of(unit, 2)
    for added, factor in ((inner, beta), (unit.bias, 1.0)):
        if added is not None:
            if added.size != 1 and added.shape not in ((outputs,), (1, outputs)):
                raise Refused("its bias is no number for each output")
            total = total + added.astype(np.float64).reshape(-1) * factor
    if not np.isfinite(total).all():
        raise Refused("its bias is NaN or infinite")
    return total / alpha if node.op == "Gemm" else total
