"""Run launches through OpenCL: on PoCL they run on this machine's CPU, to check numbers."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.targets.cuda.executor import ALIGNMENT, ARENA, WEIGHTS

SOURCE = "kernels.cl"
NAME = "opencl"


def opencl_missing() -> str | None:
    """Say what to install so that there is an OpenCL device, or None where there is one."""
    try:
        devices = _devices()
    except ImportError as error:
        return f"the Python package pyopencl ({error}): pip install 'tilewright[gpu]'"
    except Exception as error:  # pyopencl's errors have no base of their own
        return f"an OpenCL device ({_first_line(error)}): pip install 'tilewright[gpu]'"
    if devices:
        return None
    return (
        f"an OpenCL device that takes buffers from multiples of {ALIGNMENT} bytes on: "
        "pip install 'tilewright[gpu]'"
    )


class OpenClMachine:
    """An OpenCL device with an artifact's kernels, weights and arena on it."""

    def __init__(self, folder: Path, weights: np.ndarray, arena_bytes: int) -> None:
        if missing := opencl_missing():
            raise UnusableInput(f"--device opencl lacks {missing}.")
        import pyopencl as cl

        self._cl = cl
        self._context = cl.Context([_devices()[0]])
        self._queue = cl.CommandQueue(self._context)
        text = (folder / SOURCE).read_text(encoding="utf-8")
        with warnings.catch_warnings():
            # Compilers say there what they think of generated code.
            warnings.simplefilter("ignore", cl.CompilerWarning)
            program = cl.Program(self._context, text).build()
        self._kernels = {k.function_name: k for k in program.all_kernels()}
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        self._memories = {
            ARENA: cl.Buffer(self._context, cl.mem_flags.READ_WRITE, max(arena_bytes, 1)),
            WEIGHTS: cl.Buffer(self._context, flags, hostbuf=weights),
        }
        self._views: dict[tuple[str, int, int], Any] = {}

    def bind(self, launch: Mapping[str, Any]) -> Callable[[], object]:
        """Return what enqueues a launch."""
        blocks, threads = launch["blocks"], launch["threads"]
        total = tuple(b * t for b, t in zip(blocks, threads, strict=True))
        # A kernel object keeps its arguments, so each launch has its own.
        kernel = self._cl.Kernel(self._kernels[launch["kernel"]].program, launch["kernel"])
        kernel.set_args(*(self._view(*place) for place in launch["arguments"]))
        enqueue = self._cl.enqueue_nd_range_kernel
        return lambda: enqueue(self._queue, kernel, total, tuple(threads))

    def write(self, base: str, at: int, values: np.ndarray) -> None:
        """Copy an array to the device."""
        if values.nbytes:
            self._cl.enqueue_copy(
                self._queue, self._memories[base], values, dst_offset=at, is_blocking=True
            )

    def read(self, base: str, at: int, values: np.ndarray) -> None:
        """Fill an array from the device, once all launches are over."""
        if values.nbytes:
            self._cl.enqueue_copy(
                self._queue, values, self._memories[base], src_offset=at, is_blocking=True
            )

    def _view(self, base: str, at: int, size: int) -> Any:
        key = (base, at, size)
        if key not in self._views:
            self._views[key] = self._memories[base].get_sub_region(at, max(size, 1))
        return self._views[key]


def _devices() -> list[Any]:
    """Return the devices that can start a buffer wherever a tensor lies, CPUs first.

    Numbers are to be checked, which a CPU does on every machine alike.
    """
    _keep_nothing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyopencl as cl
    devices = [d for platform in cl.get_platforms() for d in platform.get_devices()]
    fitting = [
        d for d in devices if 8 * ALIGNMENT % d.mem_base_addr_align == 0
    ]  # it is in bits
    return sorted(fitting, key=lambda d: not d.type & cl.device_type.CPU)


@cache
def _keep_nothing() -> tempfile.TemporaryDirectory[str]:
    """Give PoCL a folder until this process ends: it leaves compiled kernels in the cache."""
    folder = tempfile.TemporaryDirectory(prefix="tilewright-pocl-", ignore_cleanup_errors=True)
    os.environ.setdefault("POCL_CACHE_DIR", folder.name)
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
