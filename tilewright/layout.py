"""Tile: the block of a weight matrix that is kept or dropped as one."""

from dataclasses import dataclass


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
        outputs, inputs = text.split("x")
        tile = cls(int(outputs), int(inputs))
        if tile.outputs < 1 or tile.inputs < 1:
            raise ValueError(text)
        return tile
