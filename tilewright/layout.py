"""Layout: which weights of a matrix go together. A tile as one, or some of every few."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Tile:
    """`outputs` x `inputs` weights of an (outputs, inputs) matrix with one zero pattern."""

    outputs: int
    inputs: int = 1

    def __str__(self) -> str:
        """Return "4x1", the spelling of command line and reports."""
        return f"{self.outputs}x{self.inputs}"

    @classmethod
    def parse(cls, text: str) -> "Tile":
        """Read "4x1". Raises ValueError on anything else."""
        numbers = [int(each) if each.isdecimal() else 0 for each in text.split("x")]
        if len(numbers) != 2 or min(numbers) < 1:
            raise ValueError(f'a tile is "{text}" and must be outputs x inputs, such as "4x1"')
        return cls(*numbers)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return rows of tiles and column blocks of a matrix; the last may be cut off."""
        outputs, inputs = shape
        return -(-outputs // self.outputs), -(-inputs // self.inputs)


class Groups(NamedTuple):
    """Which group each column (block) is of, and how many of them each group may lose."""

    of: np.ndarray
    limits: np.ndarray


@dataclass(frozen=True)
class Pattern:
    """`kept` of every `of` neighbouring inputs of an output are not zero, such as 2:4."""

    kept: int
    of: int

    def __str__(self) -> str:
        """Return "2:4", the spelling of command line and reports."""
        return f"{self.kept}:{self.of}"

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read "2:4". Raises ValueError on anything else."""
        numbers = [int(each) if each.isdecimal() else 0 for each in text.split(":")]
        if len(numbers) != 2 or not 0 < numbers[0] < numbers[1]:
            raise ValueError(f'a pattern is "{text}" and must be kept:of, such as "2:4"')
        return cls(*numbers)

    @property
    def sparsity(self) -> float:
        """The share of weights that a full group loses."""
        return 1 - self.kept / self.of

    def groups(self, inputs: int, taps: int = 1) -> Groups:
        """Return the groups of a matrix's columns, which are (channels, `taps`).

        Neighbours are channels of one tap: devices multiply tap by tap. A last group that is
        not full keeps its share, rounded up.
        """
        channels, tap = np.divmod(np.arange(inputs), taps)
        of = channels // self.of * taps + tap
        sizes = np.bincount(of)
        return Groups(of, sizes - -(-sizes * self.kept // self.of))


Layout = Tile | Pattern


def parse_layout(text: str) -> Layout:
    """Read "4x1" or "2:4". Raises ValueError on anything else."""
    return Pattern.parse(text) if ":" in text else Tile.parse(text)
