"""Tail: what follows a kernel's results before they are stored, and where all of it lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.elementwise import Chain, run_chain
from tilewright.targets.kernels.pen import Expr, Pen


@dataclass(frozen=True)
class Tail:
    """A chain with the strides and dtypes of its operands and outputs in memory.

    They are a kernel's last arguments, operands first.
    """

    chain: Chain
    operands: tuple[Strides, ...]
    operand_dtypes: tuple[str, ...]
    outputs: tuple[Strides, ...]
    output_dtypes: tuple[str, ...]

    @classmethod
    def of(
        cls, chain: Chain, operands: int, strides: Sequence[Strides], dtypes: Sequence[str]
    ) -> "Tail":
        """Return a chain's tail; of `strides` and `dtypes` the first are the operands'."""
        return cls(
            chain,
            tuple(strides[:operands]),
            tuple(dtypes[:operands]),
            tuple(strides[operands:]),
            tuple(dtypes[operands:]),
        )

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*self.operand_dtypes, *self.output_dtypes)

    def run(
        self,
        pen: Pen,
        first: int,
        value: Expr,
        place: tuple[Expr, Expr, Expr, Expr],
        lanes: int,
        along: str = "x",
    ) -> list[Expr]:
        """Run the chain on a vector of results.

        `first` is the number of the first operand among the kernel's arguments; `place` the
        vector's image, channel, row and column; its lanes run `along` columns ("x") or channels
        ("n").
        """

        def operand(i: int) -> Expr:
            strides = self.operands[i]
            step = getattr(strides, along)
            return pen.load(first + i, strides.at(*place), lanes, stride=step)

        return run_chain(pen, self.chain, pen.register(value), operand, lanes)

    def store(
        self,
        pen: Pen,
        first: int,
        value: Expr,
        place: tuple[Expr, Expr, Expr, Expr],
        lanes: int,
        along: str = "x",
    ) -> None:
        """Run the chain as `run` does, and store what it yields."""
        behind = first + len(self.operands)
        stored = self.run(pen, first, value, place, lanes, along)
        for i, (out, strides) in enumerate(zip(stored, self.outputs, strict=True)):
            pen.store(behind + i, strides.at(*place), out, lanes)
