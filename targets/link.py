"""Link object files: by the system's C compiler, or by Zig's, which PyPI carries."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tilewright.errors import UnusableInput


def link_shared(
    output: str, objects: str | Sequence[str], options: Sequence[str] | None = None
) -> None:
    """Link `objects` into a shared library. Raises UnusableInput without a linker."""
    files = [objects] if isinstance(objects, str) else list(objects)
    command = [*_linker(), "-shared", "-fPIC", "-o", output, *files, *(options or [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnusableInput(
            f"Linking {output} failed: `{' '.join(command)}` said: "
            f"{done.stderr.strip()[-800:]}. "
            "Check the free space, and that the compiler can link a shared library."
        )


def _linker() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise UnusableInput(
        "Compiling for cpu needs a linker: cc, gcc, clang and ziglang were looked for, none is "
        "there. Install one: `apt-get install gcc`, or `pip install tilewright[zig]`."
    )
