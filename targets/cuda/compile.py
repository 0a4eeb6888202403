"""Compile CUDA source to machine code, with nvcc where there is one, else with NVRTC."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tilewright.errors import CannotLower, UnusableInput

NO_COMPILER = (
    "no CUDA compiler: neither nvcc (CUDA_HOME, PATH) nor NVRTC is installed; "
    "pip install 'tilewright[gpu]'"
)


# Else ptxas spills some kernels for the sake of a few more resident threads.
_REGISTERS = "--register-usage-level=10"


class Cubin(NamedTuple):
    """Machine code, what ptxas said of it, and what compiled it."""

    code: bytes
    log: str
    compiler: str


def compile_cuda(source: str, arch: str) -> Cubin | None:
    """Return source code compiled for an architecture like "sm_90"; None without a compiler.

    Raises UnusableInput where the compiler does not know the architecture.
    """
    if nvcc := find_nvcc():
        return _by_nvcc(nvcc, source, arch)
    if library := find_nvrtc():
        return _by_nvrtc(library, source, arch)
    return None


def has_compiler() -> bool:
    """Say whether there is one."""
    return find_nvcc() is not None or find_nvrtc() is not None


def find_nvcc() -> Path | None:
    """Return the nvcc of CUDA_HOME, or else the one on PATH."""
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").is_file():
        return Path(home) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None


def find_nvrtc() -> Path | None:
    """Return the library of the package nvidia-cuda-nvrtc, if it is installed."""
    for folder in _nvidia_folders():
        for library in sorted((folder / "lib").glob("libnvrtc.so.*")):
            return library
    return None


def _nvidia_folders() -> Iterator[Path]:
    """Yield the folders that NVIDIA's packages share: nvidia/cu13, in the newest layout."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(place).glob("cu[0-9]*"), reverse=True)


def _by_nvcc(nvcc: Path, source: str, arch: str) -> Cubin:
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        written, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        written.write_text(source, encoding="utf-8")
        options = [f"-arch={arch}", "-cubin", "-w", "-Xptxas", f"-v,{_REGISTERS}"]
        ended = subprocess.run(
            [nvcc, *options, "-o", made, written], capture_output=True, text=True, check=False
        )
        log = ended.stdout + ended.stderr
        if ended.returncode or not made.is_file():
            raise _failed(f"nvcc ({nvcc})", arch, log)
        return Cubin(made.read_bytes(), log, "nvcc")


def _by_nvrtc(path: Path, source: str, arch: str) -> Cubin:
    library = ctypes.CDLL(str(path))
    program = ctypes.c_void_p()
    failed = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
    )
    if failed:
        raise CannotLower(f"NVRTC ({path}) takes no program: it answers {failed}.")
    # The standard's headers for devices, of the package nvidia-cuda-cccl.
    headers = path.parents[1] / "include"
    options = [
        f"--gpu-architecture={arch}",
        "--ptxas-options=-v",
        f"--ptxas-options={_REGISTERS}",
        "-w",
        f"-I{headers / 'cccl'}",
        f"-I{headers}",
    ]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        failed = library.nvrtcCompileProgram(program, len(options), given)
        log = _text_of(library, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if failed:
            raise _failed(f"NVRTC ({path})", arch, log)
        return Cubin(_text_of(library, "CUBIN", program), log, "NVRTC")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text_of(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, text)
    return text.raw


def _failed(compiler: str, arch: str, log: str) -> UnusableInput | CannotLower:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if not lines or any(re.search("gpu.architecture", line) for line in lines):
        return UnusableInput(
            f'arch "{arch}": {compiler} does not know it ({lines[0] if lines else "no word"}). '
            'Give the target\'s .toml one that it knows, such as "sm_90", or install another.'
        )
    told = next((line for line in lines if "error" in line), lines[-1])
    return CannotLower(f"{compiler} cannot compile the kernels for {arch}: {told}")
