"""Engines that can be timed: a file each beside this one, opened in a process of its own.

The packages of some engines cannot live beside ours; such an engine gets a virtual environment
in the cache folder. What runs there, time_engine.py and the engine's file, imports nothing of
tilewright.
"""

import importlib.util
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilewright.cache import cache_folder, write_aside
from tilewright.errors import UnknownName, UnusableInput
from tilewright.protocol import Report

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """`file` defines open_engine(path, threads) and version(); `requirement` is for pip."""

    file: Path
    requirement: str | None = None


ENGINES: Mapping[str, Engine] = {
    "tilewright": Engine(FOLDER / "of_tilewright.py"),
    "onnxruntime": Engine(FOLDER / "of_onnxruntime.py"),
    "openvino": Engine(FOLDER / "of_openvino.py", "openvino==2026.4.1"),
    # The last version with wheels; its engine is closed, and it needs numpy 1.
    "deepsparse": Engine(FOLDER / "of_deepsparse.py", "deepsparse==1.8.0"),
}


# Computes nothing, and tells by how long that takes what state the machine is in.
PROBE = FOLDER / "launch_probe.py"
LAUNCHES = 100  # a call of it


def check_engine(name: str) -> None:
    """Raise UnknownName for an engine that does not exist."""
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)


def file_of(name: str) -> Path:
    """Return the file that opens an engine."""
    return ENGINES[name].file


def interpreter(name: str, report: Report) -> str:
    """Return the Python that has an engine: this one, or its own environment's.

    The environment is made where it is missing. Raises UnusableInput where pip cannot.
    """
    requirement = ENGINES[name].requirement
    if requirement is None or importlib.util.find_spec(name):
        return sys.executable
    folder = cache_folder() / "engines" / requirement.replace("==", "-")
    if not folder.exists():
        report(f"installing {requirement} into {folder}")
        with write_aside(folder) as aside:
            _install(aside, requirement)
    return str(folder / "bin" / "python")


def _install(folder: Path, requirement: str) -> None:
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    name = requirement.partition("==")[0]
    done = subprocess.run(
        [*pip, "--only-binary", name, requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = next((s for s in done.stderr.splitlines() if s.startswith("ERROR")), "no reason")
        raise UnusableInput(
            f'The engine "{name}" needs {requirement}, which pip does not install into an '
            f"environment of its own: {said}. Leave {name} out, or install it yourself."
        )
