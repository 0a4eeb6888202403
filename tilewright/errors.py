"""What can go wrong, as types.

    TilewrightError
    ├── UnusableInput        the user's model, data, option or place cannot be used   exit 2
    │   ├── UnknownName      a pass, target, model or task that does not exist
    │   ├── DamagedArtifact  an artifact whose files are not the ones that were written
    │   └── DeviceFailed     a board that went away, hangs or crashed
    ├── PassFailed           a pass broke a promise; carries the folder that reruns it  exit 2
    ├── CannotLower          a backend has no kernel for some nodes                     exit 2
    └── CheckFailed          a verification or a gate said no                           exit 1

Every message has four parts: what was asked, where, what was found, what to do.
"""

import difflib
from collections.abc import Iterable


class TilewrightError(Exception):
    """Base of all errors that a user can cause or mend."""


class UnusableInput(TilewrightError):
    """The model, the data, an option or a place on disk cannot be used."""


class UnknownName(UnusableInput):
    """A name that is not in its registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        super().__init__(f'There is no {kind} "{name}".{hint} Known: {", ".join(names)}.')


class DamagedArtifact(UnusableInput):
    """A file of an artifact is missing or is not the one that was written."""


class DeviceFailed(UnusableInput):
    """A board went away, hangs or crashed; another one may do what it was asked to."""


class PassFailed(TilewrightError):
    """A pass broke a promise it makes; the message names the folder that reruns it."""


class CannotLower(TilewrightError):
    """A backend has no kernel for some nodes; the message lists them."""


class CheckFailed(TilewrightError):
    """A verification or a gate said no."""
