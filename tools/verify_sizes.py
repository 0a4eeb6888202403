"""Verify an artifact at each of its sizes, and find out what its inputs may be padded by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, static_shape
from tilewright.protocol import Executable, Feeds
from tilewright.sizes import Axes, Sizes, all_choices, fit
from tilewright.tools.other_sizes import Resizing, written
from tilewright.tools.verify_artifact import verify_artifact
from tilewright.verify import compare


@dataclass(frozen=True, eq=False)
class SizesTrial:
    """What is on trial: an artifact's program, and the graph that it was built from.

    `feeds` are inputs of the first size; `allowed` is how far answers may be from its,
    over the largest one.
    """

    resizing: Resizing
    graph: Graph
    executable: Executable
    feeds: Feeds
    allowed: float

    def outcome(self, mask: str | None) -> Sizes:
        """Compare the answers at every size; return the sizes, and what may be padded.

        Raises CheckFailed where answers differ, and UnusableInput where `mask` is no mask.
        """
        choices = all_choices(self.resizing.dims)
        inputs: dict[str, list[tuple[int, ...]]] = {}
        outputs: dict[str, list[tuple[int, ...]]] = {}
        for choice in choices:
            for tensor in self.resizing.read(choice).inputs:
                inputs.setdefault(tensor.name, []).append(_shape(tensor))
        known = Sizes.of(choices, inputs, outputs)
        for choice in choices:
            self.resizing.context.report(f"verifying at size {written(choice)}")
            feeds = self._feeds(known, choice)
            model = self.resizing.model(self.graph, choice)
            name = f"the model at size {written(choice)}"
            verify_artifact({name: model}, self.executable, [feeds], self.allowed)
            for name, values in self.executable(feeds).items():
                outputs.setdefault(name, []).append(values.shape)
        sizes = Sizes.of(choices, inputs, outputs)
        padded = tuple(name for name in self.resizing.dims if self._may_pad(sizes, name))
        sizes = replace(sizes, padded=padded)
        return sizes if mask is None else self._masked(sizes, mask)

    def _may_pad(self, sizes: Sizes, name: str) -> bool:
        """Say whether padding along a dimension changes no answer, at sizes in between."""
        compiled = set(self.resizing.dims[name])
        between = [n for n in range(1, max(compiled)) if n not in compiled]
        if not between or any("" in axes for axes in sizes.outputs.values()):
            return False
        padding = replace(sizes, padded=(name,))
        for size in {between[0], between[-1]}:  # with the most padding, and the least
            choice = {**sizes.choices[0], name: size}
            feeds = self._feeds(sizes, choice)
            try:
                expected = oracle.run(self.resizing.model(self.graph, choice), feeds)
            except UnusableInput:
                return False  # it is another network there
            if not compare(expected, padding.run(self.executable, feeds)).within(self.allowed):
                return False
        return True

    def _masked(self, sizes: Sizes, mask: str) -> Sizes:
        """Return the sizes with the mask, which must leave out what changes no answer."""
        dimension = (sizes.inputs.get(mask) or (0,))[-1]
        if dimension not in sizes.padded:
            there = [n for n, axes in sizes.inputs.items() if axes and axes[-1] in sizes.padded]
            raise UnusableInput(
                f"--mask {mask}: it must be an input whose last dimension has several sizes "
                f"and may be padded; such inputs are {there}."
            )
        given = self.feeds[mask]
        kept = max(1, given.shape[-1] // 2)
        shorter = np.where(np.arange(given.shape[-1]) < kept, given, 0).astype(given.dtype)
        feeds = {**self.feeds, mask: shorter}
        masked = replace(sizes, mask=mask)
        # What stands where nothing counts is nobody's concern.
        cut = {**sizes.choices[0], str(dimension): kept}
        expected, found = (
            {name: fit(values, sizes.outputs[name], cut) for name, values in answers.items()}
            for answers in (
                oracle.outputs_of(oracle.session(self.graph), feeds),
                masked.run(self.executable, feeds),
            )
        )
        seen = compare(expected, found)
        if not seen.within(self.allowed):
            raise UnusableInput(
                f"--mask {mask}: what it leaves out changes the answers: output "
                f'"{seen.worst}" differs by {seen.max_rel_error:.1e} of its largest value. '
                "Leave the option out."
            )
        return masked

    def _feeds(self, sizes: Sizes, choice: Mapping[str, int]) -> dict[str, np.ndarray]:
        return {n: _repeated(self.feeds[n], axes, choice) for n, axes in sizes.inputs.items()}


def _shape(tensor: gs.Tensor) -> tuple[int, ...]:
    shape = static_shape(tensor)
    assert shape is not None, f"input {tensor.name} has no static shape"
    return shape


def _repeated(values: np.ndarray, axes: Axes, choice: Mapping[str, int]) -> np.ndarray:
    """Return an input at other sizes: cut, or repeated."""
    for axis, name in enumerate(axes):
        if isinstance(name, str) and name in choice:
            values = values.take(np.arange(choice[name]) % values.shape[axis], axis=axis)
    return values
