"""The graph that passes made, at other sizes of the model's open dimensions.

Passes run once, at the sizes that the calibration data have. What they leave is the same at
other sizes but for constants that shapes were folded into: those are found by folding the
original at both sizes, and replaced.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import dropwhile

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.errors import UnusableInput
from tilewright.graph import Graph, constant, is_constant
from tilewright.pipeline import Pipeline
from tilewright.protocol import Context
from tilewright.sizes import all_choices
from tilewright.tools.resolve_pipeline import reads_plan


@dataclass(frozen=True, eq=False)
class Resizing:
    """The model at every combination of sizes of its open dimensions.

    `read` returns the original at some sizes; `dims` are the sizes of each open dimension, the
    first one that of the graph that passes made.
    """

    read: Callable[[Mapping[str, int]], Graph]
    pipeline: Pipeline
    context: Context
    dims: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        """Raise UnusableInput for a pipeline that folds what it has changed before."""
        lossy = list(dropwhile(lambda step: step.keeps_outputs, self.pipeline.passes))
        if late := [step.name for step in lossy if step.keeps_outputs]:
            raise UnusableInput(
                f"Pipeline: {late[0]} stands behind {lossy[0].name}, which changes answers; "
                "with several sizes of a dimension it may fold what only one of them has. Put "
                f"{late[0]} first."
            )

    def others(self, graph: Graph) -> Iterator[Graph]:
        """Yield the graph that passes made, at all sizes but the first."""
        for choice in all_choices(self.dims)[1:]:
            self.context.report(f"at size {written(choice)}")
            yield self._moved(graph, choice)

    def model(self, graph: Graph, choice: Mapping[str, int]) -> Graph:
        """Return what judges answers at some sizes: the original, if nothing was lost."""
        if all(step.keeps_outputs for step in self.pipeline.passes):
            return self.read(choice)
        return self._moved(graph, choice)

    def _moved(self, graph: Graph, choice: Mapping[str, int]) -> Graph:
        return at_other_size(graph, self._first, self._folded(choice), written(choice))

    @cached_property
    def _first(self) -> Graph:
        return self._folded(all_choices(self.dims)[0])

    def _folded(self, choice: Mapping[str, int]) -> Graph:
        """Run the passes before the first one that changes answers, but for those that permute.

        What is permuted hangs on calibration data and on tiles, which sizes may not share.
        """
        faithful = self.pipeline.only(lambda step: step.keeps_outputs and not reads_plan(step))
        return faithful.run(self.read(choice), self.context, reproductions=None).graph


def written(choice: Mapping[str, int]) -> str:
    """Return sizes as --dim takes them."""
    return ", ".join(f"{name}={size}" for name, size in choice.items())


def at_other_size(graph: Graph, here: Graph, there: Graph, sizes: str) -> Graph:
    """Return `graph`, which was made of `here`, as if it had been made of `there`.

    `here` and `there` are the original after the passes that keep answers, at two sizes.
    Raises UnusableInput where they differ in more than constants: `sizes` are the latter's.
    """
    _check_same_nodes(here, there, sizes)
    old, new = here.constants(), there.constants()
    moved = graph.edit()
    tensors = moved.gs.tensors()
    for name, values in _changed(old, new).items():
        tensor = tensors.get(name)
        if not isinstance(tensor, gs.Constant) or not _same(tensor.values, old[name]):
            raise UnusableInput(
                f'--dim {sizes}: the constant "{name}" hangs on the size, and a pass changed '
                "it. Compile the model for each size by itself."
            )
        tensor.values = constant(name, values).values
    before, after = _shapes(here), _shapes(there)
    for name, tensors in _variables(moved).items():
        untouched = all(t.shape == before.get(name, ()) for t in tensors)
        for tensor in tensors:
            tensor.shape = after[name] if untouched else None
    return moved.infer_shapes()


def _variables(graph: Graph) -> dict[str, list[gs.Variable]]:
    """Return all tensors that are no constants; branches may give several one name."""
    found: dict[str, dict[int, gs.Variable]] = {}
    for scope in graph.scopes():
        for name, tensor in scope.tensors().items():
            if isinstance(tensor, gs.Variable):
                found.setdefault(name, {})[id(tensor)] = tensor
    return {name: list(tensors.values()) for name, tensors in found.items()}


def _shapes(graph: Graph) -> dict[str, list[int | str] | None]:
    """Return the shapes of the tensors that have a name of their own."""
    return {
        name: tensors[0].shape
        for name, tensors in _variables(graph).items()
        if len(tensors) == 1
    }


def _check_same_nodes(here: Graph, there: Graph, sizes: str) -> None:
    outer = set(here.constants())
    for one, other in zip(here.nodes, there.nodes, strict=False):
        if _described(one, outer) != _described(other, outer):
            another = "another " if one.op == other.op else ""
            raise _differ(
                sizes, f"{one.op} {one.name} is {another}{other.op} {other.name} there"
            )
    if len(here.nodes) != len(there.nodes):
        raise _differ(sizes, f"{len(here.nodes)} nodes are {len(there.nodes)} there")


def _described(node: gs.Node, outer: Collection[str]) -> tuple[object, ...]:
    """Return what can be compared of a node, but for the `outer` constants that it reads."""
    attributes = {key: _plain(value, outer) for key, value in sorted(node.attrs.items())}
    names = [t.name for t in (*node.inputs, *node.outputs)]
    return node.op, node.domain, names, attributes


def _plain(value: object, outer: Collection[str]) -> object:
    """Return an attribute as what can be compared; of a branch its nodes and its constants."""
    if not isinstance(value, gs.Graph):
        return str(value)
    constants = [
        (name, tensor.dtype, tensor.shape, sha256(tensor.values.tobytes()).digest())
        for name, tensor in value.tensors().items()
        if is_constant(tensor) and name not in outer
    ]
    results = [tensor.name for tensor in value.outputs]
    return [_described(node, outer) for node in value.nodes], results, constants


def _differ(sizes: str, what: str) -> UnusableInput:
    return UnusableInput(
        f"--dim {sizes}: the model is another network at this size, not the same one with "
        f"other shapes: {what}. Compile it for each size by itself."
    )


def _changed(
    old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    return {name: new[name] for name in old if name in new and not _same(old[name], new[name])}


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or (one.dtype == other.dtype and np.array_equal(one, other))
