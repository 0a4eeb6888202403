"""Make the programs that boards need: a server, a runner, and TVM's runtime beside them.

tilewright-server       takes artifacts over the network, by TVM RPC
tilewright-run          runs an artifact that lies on the board
libtilewright_board.so  what the server loads to run artifacts
libtvm_*.so             TVM's runtime, out of its package for the board's machine
"""

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from tilewright.cache import cache_folder, write_aside
from tilewright.errors import UnusableInput
from tilewright.protocol import Report
from tilewright.targets import link
from tilewright.targets.link import Toolchain

SERVER, RUNNER, LIBRARY = "tilewright-server", "tilewright-run", "libtilewright_board.so"

_SOURCES = Path(__file__).parent
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_RUNTIME = ("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_ffi.so")
_OPTIONS = ("-std=c++17", "-O2", "-Wall")


def board_programs(triple: str, report: Report) -> Path:
    """Return the folder with the programs for a machine; made where they are not there.

    Raises UnusableInput without a C++ compiler for it, and where TVM's package for it cannot be
    fetched.
    """
    folder = cache_folder() / "boards" / f"{triple}-{_version()}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            # Another process may be making them: a folder is not replaced while it is in use.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _make(triple, folder, report)
    return folder


def _make(triple: str, folder: Path, report: Report) -> None:
    with write_aside(folder) as aside:
        aside.mkdir()
        report(f"fetching TVM's runtime for {triple}")
        _fetch_runtime(triple, aside)
        report(f"compiling the programs for {triple}")
        _compile(triple, aside)


def _version() -> str:
    """Return a hash of all that the programs are made of."""
    digest = hashlib.sha256()
    here = [Path(__file__), Path(link.__file__), *_SOURCES.glob("*.cc"), *_SOURCES.glob("*.h")]
    for source in sorted(here):
        digest.update(source.read_bytes())
    digest.update(" ".join(metadata.version(package) for package in _PACKAGES).encode())
    return digest.hexdigest()[:12]


def _fetch_runtime(triple: str, folder: Path) -> None:
    """Take the runtime's libraries out of TVM's packages for another machine."""
    machine = triple.partition("-")[0]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(prefix="tilewright-") as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", downloads, "--platform", f"manylinux_2_28_{machine}"]
        command += ["--python-version", python, "--only-binary=:all:"]
        command += [f"{package}=={metadata.version(package)}" for package in _PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnusableInput(
                f"TVM's runtime for {triple} cannot be fetched: `{' '.join(command)}` said: "
                f"{done.stderr.strip()[-500:]}. Check the network, and that pip is installed."
            )
        for wheel in Path(downloads).glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                for name in packed.namelist():
                    if (file := name.rpartition("/")[2]) in _RUNTIME:
                        (folder / file).write_bytes(packed.read(name))
    if missing := [name for name in _RUNTIME if not (folder / name).is_file()]:
        raise UnusableInput(
            f"TVM's packages for {triple} have no {', '.join(missing)}: this version of "
            "tilewright was written for other ones. Install the versions that it asks for."
        )


def _compile(triple: str, folder: Path) -> None:
    import tvm_ffi.libinfo

    toolchain = Toolchain(triple)
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    runtime = [f"-L{folder}", *(f"-l{name[3:-3]}" for name in _RUNTIME)]
    # The libraries lie beside the programs; what they need themselves is on the board.
    runtime += ["-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"]

    def make(name: str, sources: tuple[str, ...], options: list[str]) -> None:
        files = [str(_SOURCES / source) for source in sources]
        toolchain.run("g++", str(folder / name), [*_OPTIONS, *includes, *files, *options])

    with ThreadPoolExecutor() as pool:
        server = pool.submit(make, SERVER, ("server.cc",), runtime)
        make(LIBRARY, ("program.cc", "session.cc"), ["-shared", "-fPIC"])
        make(RUNNER, ("arrays.cc", "run.cc"), ["-ltilewright_board", *runtime])
        server.result()
