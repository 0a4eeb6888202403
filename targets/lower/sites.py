"""Choices of a lowering that only a measurement settles: which of several ways is faster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Site:
    """Where one of several ways has to be taken.

    `kind` says what they are ways of. `problem` describes what their times hang on: sites of
    one problem with the same ways take the same one. `nodes` are those whose kernels the way
    may change.
    """

    kind: str
    problem: str
    nodes: tuple[str, ...]


class Picked(NamedTuple):
    """The number of a way, and what was measured, in words, if anything was."""

    number: int
    measured: str = ""


# Takes a site and its ways by name, of which the first is estimated to be the fastest.
Pick = Callable[[Site, Sequence[str]], Picked]


def estimated(_site: Site, _ways: Sequence[str]) -> Picked:
    """Take the way that is estimated to be the fastest."""
    return Picked(0)
