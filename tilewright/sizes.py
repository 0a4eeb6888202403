"""Sizes: what an artifact was compiled for where dimensions are open, and what fits it.

An inference runs at the smallest compiled size that holds it. Along dimensions where that was
seen to change no answer, inputs are padded with zeros, and outputs are cut back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.protocol import Executable, Feeds

# Of each axis: its size, or the name of the dimension it has the size of; "" where it hangs on
# the sizes in another way.
Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Sizes:
    """What was compiled: `choices` are sizes by dimension, the first is what reports tell of.

    `padded` names the dimensions along which inputs may be padded. `mask` is the input that
    says, by ones and zeros, how much of its last dimension counts; what it leaves out at the
    end is not computed.
    """

    choices: tuple[Mapping[str, int], ...]
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    padded: tuple[str, ...] = ()
    mask: str | None = None

    @classmethod
    def of(
        cls,
        choices: Sequence[Mapping[str, int]],
        inputs: Mapping[str, Sequence[tuple[int, ...]]],
        outputs: Mapping[str, Sequence[tuple[int, ...]]],
    ) -> "Sizes":
        """Find out which axes have which dimensions from the shapes at each choice."""
        return cls(
            tuple(choices),
            {name: _axes(choices, shapes) for name, shapes in inputs.items()},
            {name: _axes(choices, shapes) for name, shapes in outputs.items()},
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Sizes":
        """Read what `as_json` wrote."""
        return cls(
            tuple(stored["choices"]),
            {name: tuple(axes) for name, axes in stored["inputs"].items()},
            {name: tuple(axes) for name, axes in stored["outputs"].items()},
            tuple(stored["padded"]),
            stored["mask"],
        )

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {
            "choices": [dict(choice) for choice in self.choices],
            "inputs": {name: list(axes) for name, axes in self.inputs.items()},
            "outputs": {name: list(axes) for name, axes in self.outputs.items()},
            "padded": list(self.padded),
            "mask": self.mask,
        }

    def run(self, executable: Executable, feeds: Feeds | None = None) -> dict[str, np.ndarray]:
        """Run one inference at a compiled size. Raises UnusableInput where none holds it."""
        if not isinstance(feeds, Mapping):
            return executable(feeds)  # type: ignore[arg-type] # it says what is wrong
        if set(feeds) != set(self.inputs):
            raise UnusableInput(
                f"This artifact takes {sorted(self.inputs)}, but was given {sorted(feeds)}."
            )
        arrays = {name: np.asarray(values) for name, values in feeds.items()}
        given, choice = self.sizes_of(arrays), self.compiled_for(arrays)
        if choice == given:
            return executable(arrays)
        fitted = {
            name: fit(values, self.inputs[name], choice) for name, values in arrays.items()
        }
        found = executable(fitted)
        return {name: fit(values, self.outputs[name], given) for name, values in found.items()}

    def compiled_for(self, feeds: Feeds) -> Mapping[str, int]:
        """Return the compiled sizes that inputs run at. Raises UnusableInput without any."""
        return self._choice(self._needed(self.sizes_of(feeds), feeds))

    def whole(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Return inputs of which the mask leaves nothing out."""
        if self.mask is None:
            return dict(feeds)
        return {**feeds, self.mask: np.ones_like(feeds[self.mask])}

    def resized(self, feeds: Feeds, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return inputs at other sizes: cut, or repeated."""
        found = {}
        for name, axes in self.inputs.items():
            values = np.asarray(feeds[name])
            for axis, dimension in enumerate(axes):
                if isinstance(dimension, str) and dimension in sizes:
                    places = np.arange(sizes[dimension]) % values.shape[axis]
                    values = values.take(places, axis=axis)
            found[name] = values
        return found

    def sizes_of(self, arrays: Feeds) -> dict[str, int]:
        """Return the size of each dimension in some inputs. Raises UnusableInput."""
        sizes: dict[str, int] = {}
        for name, axes in self.inputs.items():
            shape = np.shape(arrays[name])
            wrong = UnusableInput(
                f'Input "{name}" must be [{", ".join(map(str, axes))}]; found {list(shape)}.'
            )
            if len(shape) != len(axes) or 0 in shape:
                raise wrong
            for axis, size in zip(axes, shape, strict=True):
                if isinstance(axis, int):
                    if size != axis:
                        raise wrong
                elif size != sizes.setdefault(axis, size):
                    raise UnusableInput(f"{wrong} Another input has {axis} = {sizes[axis]}.")
        return sizes

    def _needed(self, given: Mapping[str, int], arrays: Feeds) -> dict[str, int]:
        """Return the sizes that have to be computed: up to the last one that the mask keeps."""
        if self.mask is None:
            return dict(given)
        mask = np.asarray(arrays[self.mask])
        kept = np.flatnonzero(mask.reshape(-1, mask.shape[-1]).any(axis=0))
        dimension = str(self.inputs[self.mask][-1])
        return {**given, dimension: int(kept[-1]) + 1 if kept.size else 1}

    def _choice(self, needed: Mapping[str, int]) -> Mapping[str, int]:
        """Return the smallest compiled sizes that hold the needed ones."""

        def holds(choice: Mapping[str, int]) -> bool:
            return all(
                size == needed[name] or (size > needed[name] and name in self.padded)
                for name, size in choice.items()
            )

        fitting = [choice for choice in self.choices if holds(choice)]
        if not fitting:
            asked = ", ".join(f"{name}={size}" for name, size in needed.items())
            there = "; ".join(
                ", ".join(f"{name}={size}" for name, size in choice.items())
                for choice in self.choices
            )
            exact = [name for name in needed if name not in self.padded]
            why = (
                f" Sizes of {', '.join(exact)} must be met exactly: padding was not seen to "
                "leave the answers as they are."
                if exact
                else ""
            )
            raise UnusableInput(
                f"The inputs have {asked}, and the artifact was compiled for {there}.{why} "
                "Compile it for this size too, with --dim."
            )
        return min(fitting, key=lambda choice: prod(choice.values()))


def all_choices(dims: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Return every combination of sizes; the first of each dimension come first."""
    return [dict(zip(dims, sizes, strict=True)) for sizes in product(*dims.values())]


def fit(values: np.ndarray, axes: Axes, sizes: Mapping[str, int]) -> np.ndarray:
    """Cut an array along its open axes, or pad it with zeros at the end, to some sizes."""
    wanted = [
        sizes.get(axis, size) if isinstance(axis, str) else size
        for axis, size in zip(axes, values.shape, strict=True)
    ]
    cut = values[tuple(slice(size) for size in wanted)]
    missing = [size - there for size, there in zip(wanted, cut.shape, strict=True)]
    return np.pad(cut, [(0, each) for each in missing]) if any(missing) else cut


def _axes(choices: Sequence[Mapping[str, int]], shapes: Sequence[tuple[int, ...]]) -> Axes:
    axes: list[int | str] = []
    for sizes in zip(*shapes, strict=True):
        names = [n for n in choices[0] if sizes == tuple(choice[n] for choice in choices)]
        fixed = len(set(sizes)) == 1 and not names
        axes.append(sizes[0] if fixed else names[0] if names else "")
    return tuple(axes)
