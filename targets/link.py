"""Compile and link for a machine: by its C compiler, or by Zig's, which PyPI carries."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.errors import UnusableInput

# Links object files into a shared library: (output, objects, options).
Link = Callable[[str, Sequence[str], Sequence[str] | None], None]

_GLIBC = "2.28"  # of zig's C library: as old as the oldest system that TVM's runtime takes
_NAMES = {"gcc": ("cc", "gcc", "clang"), "g++": ("c++", "g++", "clang++")}
_ZIG = {"gcc": "cc", "g++": "c++"}


@dataclass(frozen=True)
class Toolchain:
    """The compilers for a machine, named by its triple, such as aarch64-linux-gnu.

    No triple is this machine.
    """

    triple: str = ""

    def link_shared(
        self, output: str, objects: Sequence[str], options: Sequence[str] | None = None
    ) -> None:
        """Link `objects` into a shared library. Raises UnusableInput without a linker."""
        self.run("gcc", output, ["-shared", "-fPIC", *objects, *(options or [])])

    def run(self, compiler: str, output: str, arguments: Sequence[str]) -> None:
        """Make a file by "gcc" or "g++", whatever it is called here.

        Raises UnusableInput without a compiler, and where it fails.
        """
        head, *tail = self.command(compiler), *arguments
        command = [*head, "-o", output, *tail]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnusableInput(
                f"Linking {output} failed: `{' '.join(command)}` said: "
                f"{done.stderr.strip()[-800:]}. "
                "Check the free space, and that the compiler works."
            )

    def command(self, compiler: str) -> list[str]:
        """Return how "gcc" or "g++" is called. Raises UnusableInput where there is none."""
        names = (f"{self.triple}-{compiler}",) if self.triple else _NAMES[compiler]
        for name in names:
            if path := shutil.which(name):
                return [path]
        if importlib.util.find_spec("ziglang") is not None:
            machine = ["-target", f"{self.triple}.{_GLIBC}"] if self.triple else []
            return [sys.executable, "-m", "ziglang", _ZIG[compiler], *machine]
        package = f"{compiler}-{self.triple}" if self.triple else compiler
        raise UnusableInput(
            f"Compiling for {self.triple or 'cpu'} needs a linker: {', '.join(names)} and "
            "ziglang were looked for, none is there. Install one: "
            f"`apt-get install {package}`, or `pip install tilewright[zig]`."
        )
