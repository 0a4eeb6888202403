"""Run launches on an NVIDIA GPU, through the driver alone: no CUDA toolkit is needed."""

import ctypes
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright.errors import UnusableInput
from tilewright.measurement import Samples, Timer
from tilewright.protocol import Feeds
from tilewright.targets.cuda.executor import ARENA, CUBIN, WEIGHTS, GpuProgram

NAME = "cuda"
_LIBRARY = "libcuda.so.1"
_WARM_UP, _REPEATS = 5, 50  # of a round
# Of the driver's attributes of a device: its compute capability.
_MAJOR, _MINOR = 75, 76


def cuda_missing(library: str = _LIBRARY) -> str | None:
    """Say what is missing for a GPU to be used, or None where there is one."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"NVIDIA's driver ({library} cannot be loaded)"
    if code := driver.cuInit(0):
        return f"a GPU (the driver answers {_name_of(driver, code)})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "a GPU (the driver counts none)"


class Gpu(NamedTuple):
    """What a GPU is called, and its compute capability."""

    name: str
    capability: tuple[int, int]

    def runs(self, arch: str) -> bool:
        """Say whether it runs machine code for an architecture like "sm_90".

        CUDA C++ Programming Guide, section "Binary Compatibility": code for X.y runs on X.z
        with z from y on; with the letter a, on X.y alone.
        """
        found = re.fullmatch(r"sm_(\d+)(\d)([a-z]?)", arch)
        if not found:
            return False
        major, minor = self.capability
        exactly = found[3] == "a"
        least = int(found[2])
        return int(found[1]) == major and (least == minor if exactly else least <= minor)


def find_gpu(driver: ctypes.CDLL | None = None) -> Gpu:
    """Return the first GPU. Raises UnusableInput where there is none."""
    driver = driver or _opened()
    _call(driver, "cuInit", 0)
    return _described(driver, _first(driver))


class CudaMachine:
    """The first GPU, with an artifact's kernels, weights and arena on it."""

    def __init__(
        self,
        folder: Path,
        weights: np.ndarray,
        arena_bytes: int,
        driver: ctypes.CDLL | None = None,
    ) -> None:
        driver = driver or _opened()
        if not (folder / CUBIN).is_file():
            raise UnusableInput(
                f'Artifact "{folder}" holds no machine code, as there was no CUDA compiler '
                "when it was compiled. Compile it with nvcc or the extra [gpu] installed."
            )
        self._driver = driver
        self._context, self._module = ctypes.c_void_p(), ctypes.c_void_p()
        self._memories: list[int] = []
        self._call("cuInit", 0)
        device = _first(driver)
        self.gpu = _described(driver, device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        # Before anything else can fail; module and memories are filled in from here on.
        weakref.finalize(
            self, _release, driver, device, self._context, self._module, self._memories
        )
        self._enter()
        self._call(
            "cuModuleLoadData", ctypes.byref(self._module), (folder / CUBIN).read_bytes()
        )
        self._bases = {ARENA: self._memory(arena_bytes), WEIGHTS: self._memory(weights.nbytes)}
        self.write(WEIGHTS, 0, weights)

    def bind(self, launch: Mapping[str, Any]) -> Callable[[], object]:
        """Return what enqueues a launch."""
        function = ctypes.c_void_p()
        name = launch["kernel"].encode()
        self._call("cuModuleGetFunction", ctypes.byref(function), self._module, name)
        places = [self._bases[base] + at for base, at, _ in launch["arguments"]]
        arguments = [ctypes.c_uint64(place) for place in places]
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        sizes = [ctypes.c_uint(size) for size in (*launch["blocks"], *launch["threads"])]

        def start() -> None:
            # `arguments` is named here so that the memory behind `pointers` stays.
            assert len(pointers) == len(arguments)
            self._call("cuLaunchKernel", function, *sizes, 0, None, pointers, None)

        return start

    def write(self, base: str, at: int, values: np.ndarray) -> None:
        """Copy an array to the device."""
        self._enter()
        if values.nbytes:
            place = ctypes.c_uint64(self._bases[base] + at)
            self._call("cuMemcpyHtoD_v2", place, _pointer(values), _size(values))

    def read(self, base: str, at: int, values: np.ndarray) -> None:
        """Fill an array from the device, once all launches are over."""
        if values.nbytes:
            place = ctypes.c_uint64(self._bases[base] + at)
            self._call("cuMemcpyDtoH_v2", _pointer(values), place, _size(values))

    def time(self, launch: Callable[[], object]) -> int:
        """Return the nanoseconds between events of the GPU around what is launched."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        self._call("cuEventRecord", events[0], None)
        launch()
        self._call("cuEventRecord", events[1], None)
        self._call("cuEventSynchronize", events[1])
        passed_ms = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(passed_ms), *events)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        return round(passed_ms.value * 1e6)

    def _enter(self) -> None:
        """Make the context the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def _memory(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        self._memories.append(pointer.value)
        return pointer.value

    def _call(self, function: str, *arguments: Any) -> None:
        _call(self._driver, function, *arguments)


def timer_of(
    program: GpuProgram, feeds: Feeds, warm_up: int = _WARM_UP, repeats: int = _REPEATS
) -> Timer:
    """Return what times inferences on the GPU, without the copies of inputs and outputs."""
    machine = program.machine
    assert isinstance(machine, CudaMachine), f"{machine} has no events"
    which = program.fitting(feeds)
    program.take(which, feeds)

    def timed() -> Samples:
        taken = [machine.time(lambda: program.launch(which)) for _ in range(warm_up + repeats)]
        return Samples(tuple(taken[warm_up:]), machine.gpu.name)

    return timed


def _release(
    driver: ctypes.CDLL,
    device: ctypes.c_int,
    context: ctypes.c_void_p,
    module: ctypes.c_void_p,
    memories: Sequence[int],
) -> None:
    # This runs on whatever thread drops the last reference.
    driver.cuCtxSetCurrent(context)
    for memory in memories:
        driver.cuMemFree_v2(ctypes.c_uint64(memory))
    if module:
        driver.cuModuleUnload(module)
    driver.cuDevicePrimaryCtxRelease_v2(device)


def _opened() -> ctypes.CDLL:
    if missing := cuda_missing():
        raise UnusableInput(f"--device cuda lacks {missing}.")
    return ctypes.CDLL(_LIBRARY)


def _first(driver: ctypes.CDLL) -> ctypes.c_int:
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    return device


def _described(driver: ctypes.CDLL, device: ctypes.c_int) -> Gpu:
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    if code := getattr(driver, function)(*arguments):
        raise UnusableInput(
            f"--device cuda: the driver answers {_name_of(driver, code)} to {function}. "
            + (
                "The artifact was compiled for another architecture than this GPU's; "
                "set arch in the target's .toml, or run it with --device opencl."
                if function == "cuModuleLoadData"
                else "Look whether the GPU is in order, and its memory large enough."
            )
        )


def _name_of(driver: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"


def _pointer(values: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.ctypes.data)


def _size(values: np.ndarray) -> ctypes.c_size_t:
    return ctypes.c_size_t(values.nbytes)
