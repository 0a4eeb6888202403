"""Seeded inputs for graphs without data: enough to compare two models, not to tune one."""

from collections.abc import Iterator

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape


def random_feeds(graph: Graph, samples: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs of the graph's own shapes and dtypes; the same seed gives the same ones.

    Floats are standard normal. Integers are 0 or 1: most integer inputs are token numbers or
    masks, and both take those. Raises UnusableInput for an input without a static shape.
    """
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield {
            tensor.name: _draw(rng, _shape(tensor), np.dtype(tensor.dtype))
            for tensor in graph.inputs
        }


def _shape(tensor: object) -> tuple[int, ...]:
    shape = static_shape(tensor)
    if shape is None:
        name, found = getattr(tensor, "name", tensor), getattr(tensor, "shape", None)
        raise UnusableInput(
            f'Input "{name}" has the shape {found}, which is not fixed; bind it with --dim.'
        )
    return shape


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer) or dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
