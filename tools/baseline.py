"""The baseline: a JSON file of what artifacts took when they were last found good.

Each artifact has an entry under its folder's name: what it was compiled from and for, its
counts, its scores by task, and on each machine where it was timed the ratios of some runs to
onnxruntime. Entries of other artifacts, and times on other machines, outlive an update.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.errors import UnusableInput
from tilewright.gate import MOST_RUNS

_FORMAT = 1
_LARGEST = 1e18  # of what anything counts


@dataclass(frozen=True)
class Timed:
    """Ratios to onnxruntime, artifact / reference, one a run, and the machine they are of."""

    machine: Mapping[str, Any]
    ratios: Sequence[float]


@dataclass(frozen=True)
class Entry:
    """An artifact's figures. `identity` says which model, target, precision it is."""

    identity: Mapping[str, str]
    counts: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    timed: tuple[Timed, ...] = ()

    def times_on(self, machine: Mapping[str, Any]) -> Timed | None:
        """Return the ratios that were measured on such a machine."""
        return next((each for each in self.timed if each.machine == machine), None)

    def updated(self, new: "Entry") -> "Entry":
        """Return this entry with the figures of a new one in place of its own."""
        if new.identity != self.identity:
            return new
        machines = [each.machine for each in new.timed]
        kept = [each for each in self.timed if each.machine not in machines]
        scores = {**self.scores, **new.scores}
        return replace(new, scores=scores, timed=(*kept, *new.timed))


def read_baseline(path: Path) -> dict[str, Entry]:
    """Return entries by the artifact's name. Raises UnusableInput naming what is damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableInput(
            f'Baseline "{path}" does not exist. Write it with: tilewright gate ... --baseline '
            f"{path} --update"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON text ({error})") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("artifacts"), dict):
        raise _damaged(path, 'it has no table "artifacts"')
    if stored.get("format") != _FORMAT:
        raise _damaged(path, f"its format is {stored.get('format')!r}, not {_FORMAT}")
    return {name: _entry(path, name, entry) for name, entry in stored["artifacts"].items()}


def baseline_text(entries: Mapping[str, Entry]) -> str:
    """Return the file's text, in an order of its own so that changes are easy to read."""
    artifacts = {name: asdict(entries[name]) for name in sorted(entries)}
    return json.dumps({"format": _FORMAT, "artifacts": artifacts}, indent=1) + "\n"


def _entry(path: Path, name: str, stored: Any) -> Entry:
    if not isinstance(stored, dict):
        raise _damaged(path, f'"{name}" is {stored!r}, not a table')
    identity, timed = stored.get("identity"), stored.get("timed", [])
    if not isinstance(identity, dict):
        raise _damaged(path, f'"{name}" does not say which "identity" it has')
    if not isinstance(timed, list) or not all(isinstance(each, dict) for each in timed):
        raise _damaged(path, f'"timed" of "{name}" is not a list of tables')
    counts, scores = (
        {key: _figure(path, f"{part} of {name}", key, value) for key, value in table.items()}
        for part in ("counts", "scores")
        for table in [_table(path, name, part, stored)]
    )
    return Entry(identity, counts, scores, tuple(_timed(path, name, each) for each in timed))


def _table(path: Path, name: str, part: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    table = stored.get(part, {})
    if not isinstance(table, dict):
        raise _damaged(path, f'"{part}" of "{name}" is {table!r}, not a table')
    return table


def _timed(path: Path, name: str, stored: Mapping[str, Any]) -> Timed:
    machine, ratios = stored.get("machine"), stored.get("ratios")
    if not isinstance(machine, dict):
        raise _damaged(path, f'"timed" of "{name}" does not say on which "machine"')
    if not isinstance(ratios, list) or len(ratios) != MOST_RUNS:
        raise _damaged(path, f'"ratios" of "{name}" are not a list of {MOST_RUNS}')
    found = [_figure(path, f"ratios of {name}", str(i), each) for i, each in enumerate(ratios)]
    if not all(found):
        raise _damaged(path, f'a ratio of "{name}" is 0')
    return Timed(machine, found)


def _figure(path: Path, where: str, key: str, value: Any) -> float:
    if isinstance(value, int | float) and value is not True and 0 <= value < _LARGEST:
        return value
    raise _damaged(path, f'"{key}" in {where} is {value!r}, not a number from 0 on')


def _damaged(path: Path, found: str) -> UnusableInput:
    return UnusableInput(
        f'Baseline "{path}" cannot be used: {found}. Take it back from version control, or '
        "remove it and write it anew with --update."
    )
