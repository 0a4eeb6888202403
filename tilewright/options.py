"""Options of passes: checks that several share, and the error that says what is wrong."""

import math
from collections.abc import Callable, Collection
from typing import TypeVar

from tilewright.errors import UnusableInput
from tilewright.protocol import Pass

T = TypeVar("T")


def unusable(step: Pass, option: str, wanted: str) -> UnusableInput:
    """Return the error of an option that makes no sense: it must be what is `wanted`."""
    value = vars(step)[option]
    shown = "|".join(value) if isinstance(value, tuple) else value
    return UnusableInput(f"{step.name}: {option} is {shown}, but must be {wanted}.")


def check_below_one(step: Pass, *options: str) -> None:
    """Raise UnusableInput for what is no share of something of which a part must stay."""
    for option in options:
        if not 0 <= vars(step)[option] < 1:
            raise unusable(step, option, "a share of at least 0 and below 1")


def check_share(step: Pass, *options: str) -> None:
    """Raise UnusableInput for what is no share; all is one, too."""
    for option in options:
        if not 0 <= vars(step)[option] <= 1:
            such = getattr(type(step), option)  # its default
            raise unusable(step, option, f"a share from 0 to 1, such as {such}")


def check_positive(step: Pass, *options: str) -> None:
    """Raise UnusableInput for what is no finite number above 0."""
    for option in options:
        if not 0 < vars(step)[option] < math.inf:
            raise unusable(step, option, "a positive number")


def check_count(step: Pass, *options: str) -> None:
    """Raise UnusableInput for what is no number of things."""
    for option in options:
        if vars(step)[option] < 0:
            raise unusable(step, option, "a whole number from 0 on")


def check_name(step: Pass, option: str, known: Collection[str]) -> None:
    """Raise UnusableInput for a name that is none of those."""
    if vars(step)[option] not in known:
        raise unusable(step, option, f"one of {', '.join(known)}")


def parsed(step: Pass, option: str, parse: Callable[[str], T], wanted: str) -> T:
    """Return what `parse` reads, or raise UnusableInput where that raises ValueError."""
    try:
        return parse(vars(step)[option])
    except ValueError as error:
        raise unusable(step, option, wanted) from error
