"""Verify an artifact at each of its sizes, and find out what its inputs may be padded by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from tilewright import oracle
from tilewright.compare import Allowed, compare, worst_of
from tilewright.errors import PassFailed, UnusableInput
from tilewright.graph import Graph, static_shape
from tilewright.protocol import Executable, Feeds
from tilewright.sizes import Sizes, all_choices, fit
from tilewright.tools.resize_model import Resizing, written
from tilewright.tools.verify_artifact import verify_artifact


@dataclass(frozen=True, eq=False)
class SizesTrial:
    """What is on trial: an artifact's program, and the graph that it was built from.

    `feeds` are samples at the first size; `allowed` is how far answers may be from its.
    """

    resizing: Resizing
    graph: Graph
    executable: Executable
    feeds: Sequence[Feeds]
    allowed: Allowed

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
            size = written(choice)
            self.resizing.context.report(f"verifying at size {size}")
            feeds = known.resized(self.feeds[0], choice)
            model = self.resizing.model(self.graph, choice)
            against = {f"the model at size {size}": model}
            verify_artifact(against, self.executable, [feeds], self.allowed)
            for name, values in self.executable(feeds).items():
                outputs.setdefault(name, []).append(values.shape)
        sizes = Sizes.of(choices, inputs, outputs)
        padded = tuple(n for n in self.resizing.dims if self._may_pad(sizes, n, mask))
        sizes = replace(sizes, padded=padded)
        return sizes if mask is None else self._masked(sizes, mask)

    def _may_pad(self, sizes: Sizes, name: str, mask: str | None) -> bool:
        """Say whether padding along a dimension changes no answer, at sizes in between.

        Below each compiled size that is the one with the most padding, and the one with least.
        Of each sample the mask, where there is one, leaves something that counts.
        """
        compiled = sorted(self.resizing.dims[name])
        pairs = pairwise([0, *compiled])
        between = {n for low, high in pairs if high - low > 1 for n in (low + 1, high - 1)}
        if not between or any("" in axes for axes in sizes.outputs.values()):
            return False
        padding = replace(sizes, padded=(name,))
        return all(
            self._agree(padding, {**sizes.choices[0], name: size}, mask)
            for size in sorted(between)
        )

    def _agree(self, padding: Sizes, choice: Mapping[str, int], mask: str | None) -> bool:
        """Say whether all samples have the model's answers at sizes that are padded."""
        try:
            session = oracle.session(self.resizing.model(self.graph, choice))
            samples = [
                _counting(padding.resized(sample, choice), mask) for sample in self.feeds
            ]
            seen = compare(
                (oracle.outputs_of(session, feeds), padding.run(self.executable, feeds))
                for feeds in samples
            )
        except (UnusableInput, PassFailed):
            return False  # it is another network there, or has outputs of other shapes
        return all(self.allowed.excess(difference) <= 1 for difference in seen)

    def _masked(self, sizes: Sizes, mask: str) -> Sizes:
        """Return the sizes with the mask, which must leave out what changes no answer."""
        dimension = (sizes.inputs.get(mask) or (0,))[-1]
        if not isinstance(dimension, str) or dimension not in sizes.padded:
            there = [n for n, axes in sizes.inputs.items() if axes and axes[-1] in sizes.padded]
            raise UnusableInput(
                f"--mask {mask}: it must be an input whose last dimension has several sizes "
                "and may be padded without changing an answer; "
                f"such inputs are {', '.join(there) or 'none'}. That was tried on the "
                "calibration data, or on generated inputs where there are none: give "
                "--calibration with masks as they will be."
            )
        kept, largest = min(self.resizing.dims[dimension]), max(self.resizing.dims[dimension])
        choice = {**sizes.choices[0], dimension: largest}
        session = oracle.session(self.resizing.model(self.graph, choice))
        masked = replace(sizes, mask=mask)
        for sample in self.feeds:
            feeds = masked.whole(sizes.resized(sample, choice))
            feeds[mask][..., kept:] = 0  # this runs at the smallest size
            answers = oracle.outputs_of(session, feeds), masked.run(self.executable, feeds)
            # What stands where nothing counts is nobody's concern.
            cut = {**choice, dimension: kept}
            expected, found = (
                {name: fit(values, sizes.outputs[name], cut) for name, values in some.items()}
                for some in answers
            )
            seen = worst_of(compare([(expected, found)]), self.allowed)
            if self.allowed.excess(seen) > 1:
                raise UnusableInput(
                    f"--mask {mask}: what it leaves out changes the answers: {seen}. "
                    "Leave the option out."
                )
        return masked


def _counting(feeds: Feeds, mask: str | None) -> Feeds:
    """Return inputs with a mask that leaves nothing of a sample replaced by one of ones.

    Where nothing counts there is no right answer, however much is padded.
    """
    values = None if mask is None else feeds.get(mask)
    if mask is None or values is None or not np.ndim(values):
        return feeds
    some = np.any(values, axis=-1, keepdims=True)
    return {**feeds, mask: np.where(some, values, np.ones_like(values))}


def _shape(tensor: gs.Tensor) -> tuple[int, ...]:
    shape = static_shape(tensor)
    assert shape is not None, f"input {tensor.name} has no static shape"
    return shape
