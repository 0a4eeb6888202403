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
    the folder holds something else.
    """
    from tilewright.targets.board.make import RUNNER, board_programs

    described = find_target(target)
    triple = described.settings.get("isa", {})
    if described.backend != "arm-edge" or "triple" not in triple:
        raise UnusableInput(
            f"device build: target {described.name} runs on no board that takes programs. Give "
            "arm-edge or another of its kind: `tilewright targets`."
        )
    if folder.exists() and not (folder / RUNNER).is_file() and _holds_something(folder):
        raise UnusableInput(
            f'Output "{folder}" holds something else. Give a new folder with --output.'
        )
    made = board_programs(triple["triple"], report)
    with write_aside(folder.absolute()) as aside:
        shutil.copytree(made, aside)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _holds_something(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
