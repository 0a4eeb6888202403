"""Checkpoint: what an interrupted training goes on from."""

import contextlib
import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.autograd import require_torch
from tilewright.calibration import Calibration
from tilewright.graph import Graph
from tilewright.protocol import Context, Pass, Report
from tilewright.stale import remove_stale
from tilewright.version import VERSION


class Checkpoint:
    """A file, named by all that the training depends on; without a folder there is none."""

    def __init__(self, name: str, folder: Path | None, key: str, report: Report) -> None:
        """Look for nothing yet. `name` is that of the pass."""
        self._name, self._report = name, report
        self._file = None if folder is None else folder / f"{key}.pt"

    def read(self) -> Mapping[str, Any] | None:
        """Return what `write` was last given, or None; a damaged file counts as none."""
        if self._file is None or not self._file.is_file():
            return None
        try:
            found: Mapping[str, Any] = require_torch(self._name).load(
                self._file, weights_only=True
            )
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return found

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file; stale ones go. Where that fails, training goes on without."""
        if self._file is None:
            return
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            require_torch(self._name).save(dict(state), fresh)
            fresh.replace(self._file)
            remove_stale(self._file.parent, "*.pt")
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            self._report(f"{self._name}: interrupted, it will begin anew: {error}")
            self._file = None

    def remove(self) -> None:
        """Forget: training has come to its end."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def checkpoint_of(
    step: Pass, graphs: Sequence[Graph], calibration: Calibration, context: Context
) -> Checkpoint:
    """Return the checkpoint of a pass that trains on these."""
    known = (step, context.seed, str(context.plan), context.target, context.precision, VERSION)
    key = _key_of(known, graphs, calibration)
    return Checkpoint(step.name, context.unfinished, key, context.report)


def _key_of(settings: object, graphs: Sequence[Graph], calibration: Calibration) -> str:
    """Return a hash of all that training depends on."""
    digest = hashlib.sha256(repr(settings).encode())
    for graph in graphs:
        digest.update(str(graph).encode())
        for name, values in sorted(graph.constants().items()):
            digest.update(name.encode())
            digest.update(values.tobytes())
    for feeds in calibration.feeds():
        for name, values in sorted(feeds.items()):
            digest.update(name.encode())
            digest.update(values.tobytes())
    return digest.hexdigest()[:24]
