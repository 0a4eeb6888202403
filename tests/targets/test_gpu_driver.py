"""Running on a GPU, without one: a fake of the driver, and the choice of a device."""

import contextlib
import ctypes
import gc
import json
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.builds import graph_of, normal_feeds
from tests.targets.gpu_builds import GPU, build_in, gpu, needs_compiler, needs_opencl
from tilewright.errors import UnusableInput
from tilewright.target import read_target
from tilewright.targets import FOLDER
from tilewright.targets.cuda import compile as compiling
from tilewright.targets.cuda import driver, opencl
from tilewright.targets.cuda.executor import GpuProgram
from tilewright.targets.gpu import GpuBackend
from tilewright.timings import Timings, Tuning


class FakeDriver:
    """Answers as libcuda.so does, with host memory for a GPU's; keeps what is launched."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, ...]] = []
        self.kept: list[object] = []
        self.called: list[
            tuple[str, int]
        ] = []  # what has no answer of its own, on which thread

    def __getattr__(self, name: str) -> object:
        return partial(self._succeed, name)

    def _succeed(self, name: str, *_: object) -> int:
        self.called.append((name, threading.get_ident()))
        return 0

    def cuDeviceGetName(self, name: object, size: ctypes.c_int, _: object) -> int:  # noqa: N802
        assert size.value == 256
        name.value = b"A fake of the H100"  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetAttribute(self, value: object, number: int, _: object) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[number]  # type: ignore[attr-defined]
        return 0

    def cuModuleLoadData(self, module: object, *_: object) -> int:  # noqa: N802
        module._obj.value = 1  # type: ignore[attr-defined]
        return 0

    def cuMemAlloc_v2(self, pointer: object, size: ctypes.c_size_t) -> int:  # noqa: N802
        memory = ctypes.create_string_buffer(size.value)
        self.kept.append(memory)
        pointer._obj.value = ctypes.addressof(memory)  # type: ignore[attr-defined]
        return 0

    def cuMemcpyHtoD_v2(  # noqa: N802
        self, to: ctypes.c_uint64, values: ctypes.c_void_p, size: ctypes.c_size_t
    ) -> int:
        assert values.value is not None
        ctypes.memmove(to.value, values.value, size.value)
        return 0

    def cuMemcpyDtoH_v2(  # noqa: N802
        self, values: ctypes.c_void_p, place: ctypes.c_uint64, size: ctypes.c_size_t
    ) -> int:
        assert values.value is not None
        ctypes.memmove(values.value, place.value, size.value)
        return 0

    def cuLaunchKernel(self, function: object, *rest: object) -> int:  # noqa: N802
        """Compute y = -x, where the arguments are y and x of 12 floats."""
        sizes, arguments = rest[:6], rest[8]
        self.launched.append(tuple(s.value for s in sizes))  # type: ignore[attr-defined]
        places = [
            ctypes.cast(a, ctypes.POINTER(ctypes.c_uint64)).contents.value
            for a in arguments  # type: ignore[attr-defined]
        ]
        y, x = ((ctypes.c_float * 12).from_address(place) for place in places)
        y[:] = [-value for value in x]
        return 0

    def cuEventElapsedTime(self, passed_ms: object, *_: object) -> int:  # noqa: N802
        passed_ms._obj.value = 0.25  # type: ignore[attr-defined]
        return 0


@needs_compiler
def test_the_driver_gets_the_launches_and_arguments_of_the_program(tmp_path: Path) -> None:
    build_in(tmp_path, graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }"))
    fake = FakeDriver()
    program = GpuProgram(
        tmp_path,
        partial(driver.CudaMachine, driver=fake),  # type: ignore[arg-type]
    )
    x = normal(3, 4)
    np.testing.assert_array_equal(program({"x": x})["y"], -x)
    (launch,) = json.loads((tmp_path / "program.json").read_text())["programs"][0]["launches"]
    assert fake.launched == [(*launch["blocks"], *launch["threads"])]
    samples = driver.timer_of(program, {"x": x}, warm_up=2, repeats=3)()
    assert samples.samples_ns == (250_000,) * 3
    assert samples.device == "A fake of the H100"
    assert len(fake.launched) == 1 + 5


@needs_compiler
def test_an_answer_of_the_driver_that_is_no_success_is_told_by_its_name(tmp_path: Path) -> None:
    build_in(tmp_path, graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }"))

    class Refusing(FakeDriver):
        def cuModuleLoadData(self, *_: object) -> int:  # noqa: N802
            return 209

        def cuGetErrorName(self, code: int, name: object) -> int:  # noqa: N802
            name._obj.value = b"CUDA_ERROR_NO_BINARY_FOR_GPU"  # type: ignore[attr-defined]
            return 0

    with pytest.raises(UnusableInput, match=r"NO_BINARY_FOR_GPU to cuModuleLoadData.*set arch"):
        GpuProgram(
            tmp_path,
            partial(driver.CudaMachine, driver=Refusing()),  # type: ignore[arg-type]
        )


def machine_of(folder: Path, fake: FakeDriver) -> driver.CudaMachine:
    (folder / "kernels.cubin").write_bytes(b"\x7fELF")
    return driver.CudaMachine(
        folder,
        np.zeros(8, np.uint8),
        256,
        fake,  # type: ignore[arg-type]
    )


GIVEN_BACK = ["cuMemFree_v2", "cuMemFree_v2", "cuModuleUnload", "cuDevicePrimaryCtxRelease_v2"]


def test_memory_is_given_back_on_whatever_thread_drops_the_last_reference(
    tmp_path: Path,
) -> None:
    fake = FakeDriver()
    held = [machine_of(tmp_path, fake)]
    dropping = threading.Thread(target=held.clear)
    dropping.start()
    there = dropping.ident
    dropping.join()
    called = [name for name, thread in fake.called if thread == there]
    assert called == ["cuCtxSetCurrent", *GIVEN_BACK]


def test_what_was_taken_before_the_memory_ran_out_is_given_back(tmp_path: Path) -> None:
    class Small(FakeDriver):
        def cuMemAlloc_v2(self, pointer: object, size: ctypes.c_size_t) -> int:  # noqa: N802
            return 2 if self.kept else super().cuMemAlloc_v2(pointer, size)

    fake = Small()
    with contextlib.suppress(UnusableInput):
        machine_of(tmp_path, fake)
        raise AssertionError("the second piece of memory is refused")
    gc.collect()
    assert [name for name, _ in fake.called][-3:] == GIVEN_BACK[1:]


def test_a_module_that_was_not_loaded_is_not_unloaded(tmp_path: Path) -> None:
    class Refusing(FakeDriver):
        def cuModuleLoadData(self, *_: object) -> int:  # noqa: N802
            return 209

    fake = Refusing()
    with contextlib.suppress(UnusableInput):
        machine_of(tmp_path, fake)
    gc.collect()
    names = [name for name, _ in fake.called]
    assert names[-1] == "cuDevicePrimaryCtxRelease_v2"
    assert "cuModuleUnload" not in names


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_90", (9, 0), True),
        ("sm_80", (8, 6), True),  # code for 8.0 runs on 8.6,
        ("sm_86", (8, 0), False),  # not the other way round,
        ("sm_80", (9, 0), False),  # nor on the next generation
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),  # the letter binds it to 10.0
        ("sm_120", (12, 0), True),
        ("sm_x", (9, 0), False),
    ],
)
def test_machine_code_runs_where_nvidia_promises_it(
    arch: str, capability: tuple[int, int], runs: bool
) -> None:
    assert driver.Gpu("a fake", capability).runs(arch) == runs


# ---- which device there is ----


def test_a_gpu_is_told_by_its_name_and_compute_capability() -> None:
    found = driver.find_gpu(FakeDriver())  # type: ignore[arg-type]
    assert found == driver.Gpu("A fake of the H100", (9, 0))


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a GPU of compute capability 8.6 and a compiler into the machine."""
    monkeypatch.setattr(driver, "cuda_missing", lambda: None)
    monkeypatch.setattr(driver, "find_gpu", lambda: driver.Gpu("A40", (8, 6)))
    monkeypatch.setattr(compiling, "find_nvcc", lambda: Path("nvcc"))


@pytest.mark.usefixtures("ampere")
def test_a_target_whose_code_the_gpu_does_not_run_is_refused_before_any_work() -> None:
    assert GpuBackend().find_device(None) == "cuda"
    GpuBackend().check(read_target(FOLDER / "gpu-sm80.toml"), driver.NAME, None)
    with pytest.raises(UnusableInput, match=r"sm_90.*\(A40\).*8\.6.*--device opencl"):
        GpuBackend().check(GPU, driver.NAME, None)
    GpuBackend().check(GPU, opencl.NAME, None)


def test_measuring_is_refused_before_any_work(tmp_path: Path) -> None:
    tuning = Tuning(4, 1.0, 1, Timings(tmp_path / "timings.sqlite"))
    with pytest.raises(UnusableInput, match=r"--tune: .*Leave the option out"):
        GpuBackend().check(GPU, driver.NAME, tuning)


def test_for_opencl_any_architecture_is_built_for() -> None:
    for path in FOLDER.glob("gpu*.toml"):
        GpuBackend().check(read_target(path), opencl.NAME, None)
    with pytest.raises(UnusableInput, match="not like"):
        GpuBackend().check(gpu(arch="90"), opencl.NAME, None)


@needs_opencl
@pytest.mark.usefixtures("ampere")
def test_without_a_compiler_a_gpu_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_nvcc", lambda: None)
    monkeypatch.setattr(compiling, "find_nvrtc", lambda: None)
    assert GpuBackend().find_device(None) == "opencl"
    with pytest.raises(UnusableInput, match=r"cuda lacks machine code, .* no CUDA compiler"):
        GpuBackend().find_device("cuda")
    GpuBackend().check(GPU, opencl.NAME, None)
    graph, told = graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }"), list[str]()
    GpuBackend().build([graph], GPU, tmp_path, told.append)
    assert any("no CUDA compiler" in line and "OpenCL" in line for line in told)
    feeds = normal_feeds(graph)
    np.testing.assert_array_equal(GpuBackend().load(tmp_path)(feeds)["y"], -feeds["x"])
