"""Write the programs that boards of a target need into a folder."""

import shutil
from pathlib import Path

from tilewright.cache import write_aside
from tilewright.errors import UnusableInput
from tilewright.protocol import Report
from tilewright.tools.find_target import find_target


def build_programs(target: str, folder: Path, report: Report) -> dict[str, int]:
    """Return the bytes of each file that was written, by name.

    Raises UnusableInput for a target that has no boards, without a compiler for them, and where
    the folder holds something else, which is never removed.
    """
    from tilewright.targets.board.make import board_programs

    described = find_target(target)
    triple = described.settings.get("isa", {})
    if described.backend != "arm-edge" or "triple" not in triple:
        raise UnusableInput(
            f"device build: target {described.name} runs on no board that takes programs. Give "
            "arm-edge or another of its kind: `tilewright targets`."
        )
    _check_is_folder(folder)
    made = board_programs(triple["triple"], report)
    _check_holds_only(folder, {path.name for path in made.iterdir()})
    # A link to a folder stays one.
    with write_aside(folder.resolve(), "Give another place with --output.") as aside:
        shutil.copytree(made, aside)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _check_is_folder(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise UnusableInput(f'Output "{place}" is no folder. Give a new one with --output.')


def _check_holds_only(folder: Path, programs: set[str]) -> None:
    """Raise UnusableInput where a folder, which is to be replaced, holds anything else."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(held - programs):
        raise UnusableInput(
            f'Output "{folder}" holds something else, such as "{others[0]}", which would be '
            "lost. Give a new folder with --output."
        )
