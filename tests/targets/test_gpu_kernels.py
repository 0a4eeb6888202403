"""The parts of the gpu backend by themselves: packing, resources, estimates, tile kernels."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.gpu_builds import GPU, needs_compiler, with_empty_tiles
from tilewright.targets.cuda import fragments
from tilewright.targets.cuda.compile import Cubin, compile_cuda, find_nvcc, find_nvrtc
from tilewright.targets.cuda.device import occupancy, product_cycles, read_device
from tilewright.targets.cuda.launches import write_source
from tilewright.targets.cuda.layers import TILINGS
from tilewright.targets.cuda.packing import (
    kept_columns,
    pack_dense,
    pack_sparse,
    unpack_sparse,
)
from tilewright.targets.cuda.resources import Resources, parse_ptxas
from tilewright.targets.cuda.schedule import tvm_target
from tilewright.targets.cuda.tile import tile_kernel
from tilewright.targets.cuda.tiling import Product, Source, Tiling

DEVICE = read_device(GPU)


# ---- packing ----


@given(
    outputs=st.integers(1, 100),
    inputs=st.integers(1, 50),
    share=st.floats(0, 1),
    tile=st.sampled_from([16, 32, 64]),
)
def test_packed_tiles_hold_the_weights_and_nothing_else(
    outputs: int, inputs: int, share: float, tile: int
) -> None:
    matrix = with_empty_tiles(normal(outputs, inputs), share, tile)
    packed = pack_sparse(matrix, tile)
    np.testing.assert_array_equal(unpack_sparse(packed, matrix.shape), matrix)
    tiles = -(-outputs // tile)
    empty = round(share * inputs)
    assert packed.values.shape == (tiles * (inputs - empty), tile)
    assert kept_columns(matrix, tile) == len(packed.columns) == packed.starts[-1]
    assert packed.starts.tolist() == [row * (inputs - empty) for row in range(tiles + 1)]


def test_dense_tiles_lie_one_behind_the_other_column_by_column() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(pack_dense(matrix, 2), [[0, 2], [1, 3], [4, 0], [5, 0]])


# ---- what ptxas says ----

# As nvcc 13.0 and NVRTC 13.5 tell it of a kernel that has to make do with 24 registers.
NVCC = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'modest' for 'sm_90'
ptxas info    : Function properties for modest
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 2.697 ms
ptxas info    : Compiling entry function 'greedy' for 'sm_90'
ptxas info    : Function properties for greedy
    296 bytes stack frame, 748 bytes spill stores, 788 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 296 bytes cumulative stack size
"""
NVRTC = NVCC.replace("\n    ", "\nptxas         .     ")


@pytest.mark.parametrize("log", [NVCC, NVRTC])
def test_registers_and_spills_are_read_from_what_ptxas_says(log: str) -> None:
    assert parse_ptxas(log) == {
        "modest": Resources(10, 256, 0, 0),
        "greedy": Resources(24, 0, 296, 748 + 788),
    }


def test_nothing_is_read_from_other_words() -> None:
    assert parse_ptxas("") == {}
    assert parse_ptxas("ptxas info    : Used 24 registers\nnonsense") == {}


GREEDY = """extern "C" __global__ void greedy(float* x, int n) {
  float a[40];
  for (int i = 0; i < 40; ++i) a[i] = x[i * 32 + threadIdx.x];
  for (int k = 0; k < n; ++k)
    for (int i = 0; i < 40; ++i) a[i] = a[i] * a[(i + 7) % 40] + x[k];
  for (int i = 0; i < 40; ++i) x[i * 32 + threadIdx.x] = a[i];
}
extern "C" __global__ void __launch_bounds__(1024, 2) crowded(float* x, int n) {
  float a[40];
  for (int i = 0; i < 40; ++i) a[i] = x[i * 32 + threadIdx.x];
  for (int k = 0; k < n; ++k)
    for (int i = 0; i < 40; ++i) a[i] = a[i] * a[(i + 7) % 40] + x[k];
  for (int i = 0; i < 40; ++i) x[i * 32 + threadIdx.x] = a[i];
}
"""


def _compilers() -> list[object]:
    found = [("find_nvcc", find_nvcc()), ("find_nvrtc", find_nvrtc())]
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(not place, reason=f"{name} finds no compiler")
        )
        for name, place in found
    ]


@pytest.mark.parametrize("only", _compilers())
def test_a_kernel_that_spills_is_found_out_by_each_compiler(
    only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {"find_nvcc", "find_nvrtc"} - {only}:
        monkeypatch.setattr(f"tilewright.targets.cuda.compile.{name}", lambda: None)
    found = _compiled(GREEDY)
    assert found["greedy"].spilled_bytes == 0
    assert found["greedy"].registers > 40
    assert found["crowded"].registers == 32  # 65,536 for 2 x 1,024 threads
    assert found["crowded"].spilled_bytes > 0


def _compiled(source: str) -> dict[str, Resources]:
    made = compile_cuda(source, "sm_90")
    assert isinstance(made, Cubin)
    return parse_ptxas(made.log)


@needs_compiler
def test_no_tile_kernel_spills() -> None:
    kinds = list(_PRODUCTS)
    kernels, shared = {}, {}
    for number, tiling in enumerate(TILINGS):
        kind = kinds[number % len(kinds)]
        kernels[f"{kind}_{number}"] = tile_kernel(_PRODUCTS[kind], tiling, 0.0)
        # Sums of tensor cores lie where rows of X were; the last row needs no gap behind it.
        if not tiling.tensor_cores:
            shared[f"{kind}_{number}_kernel"] = tiling.shared_bytes
    found = _compiled(write_source(kernels, tvm_target("sm_90")).text)
    assert len(found) == len(TILINGS)
    assert {name: found[name].shared_bytes for name in shared} == shared
    assert {name: used for name, used in found.items() if used.spilled_bytes} == {}


# Uneven everywhere, so that all edges are guarded.
_PRODUCTS = {
    "matrix": Product(
        1,
        300,
        77,
        201,
        Source((201, 77), lambda b, k, m: ((m, k), None)),
        Source((201, 300), lambda b, n, m: ((m, n), None)),
        outputs_last=True,
        columns_last=True,
    ),
    "sparse_planes": Product(
        2,
        300,
        77,
        15 * 17,
        Source((2, 77, 15, 17), lambda b, k, m: ((b, k, m // 17, m % 17), m > 3)),
        Source((2, 300, 15, 17), lambda b, n, m: ((b, n, m // 17, m % 17), None)),
        kept=333,
    ),
}


# The instructions are replaced by what the PTX ISA says of them, "Matrix fragments for
# mma.m16n8k8 with .tf32": for lane 4 g + t, a0..a3 are rows g, g + 8, g, g + 8 of columns
# t, t, t + 4, t + 4; b0, b1 rows t, t + 4 of column g; c0..c3 rows g, g, g + 8, g + 8 of
# columns 2 t, 2 t + 1, 2 t, 2 t + 1.
EMULATED = """
#include <cstring>
#define __device__
#define __forceinline__ inline
static float A[16][8], B[8][8];
static float* sums[32];
static int lane_now, calls;
static float number(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
void tilewright_split(float x, unsigned& high, unsigned& low) { memcpy(&high, &x, 4); low = 0; }
void tilewright_tf32(float* c, const unsigned* a, const unsigned* b) {
  if (++calls % 3) return;  // of three products, the one of both high parts
  int g = lane_now / 4, t = lane_now % 4;
  A[g][t] = number(a[0]); A[g + 8][t] = number(a[1]);
  A[g][t + 4] = number(a[2]); A[g + 8][t + 4] = number(a[3]);
  B[t][g] = number(b[0]); B[t + 4][g] = number(b[1]);
  sums[lane_now] = c;
}
CALLED
extern "C" void warp(float* c, const float* w, int ws, const float* x, int xs) {
  for (lane_now = 0; lane_now < 32; ++lane_now)
    tilewright_mma(c + 4 * lane_now, w, ws, x, xs, lane_now);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 8; ++k)
        sums[lane][i] += A[lane / 4 + 8 * (i / 2)][k] * B[k][lane % 4 * 2 + i % 2];
}
"""


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler is installed")
def test_lanes_take_the_entries_that_the_instruction_of_tensor_cores_wants(
    tmp_path: Path,
) -> None:
    _, _, called = fragments.CUDA.rpartition("__device__")
    (tmp_path / "warp.cc").write_text(EMULATED.replace("CALLED", called))
    command = ["c++", "-shared", "-fPIC", "-w", "-o", "warp.so", "warp.cc"]
    subprocess.run(command, cwd=tmp_path, check=True)
    library = ctypes.CDLL(str(tmp_path / "warp.so"))
    w, x, sums = normal(8, 24), normal(8, 12, seed=1), np.zeros((32, 4), np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (sums, w, x)]
    library.warp(pointers[0], pointers[1], 24, pointers[2], 12)
    lane, number = np.indices((32, 4))
    expected = (w.T @ x)[lane // 4 + 8 * (number // 2), lane % 4 * 2 + number % 2]
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)  # sums of 8 products


# ---- estimates ----


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "share"),
    [
        (32, 0, 256, 1.0),  # 65,536 / 32 registers are 2,048 threads
        (64, 0, 256, 0.5),
        (33, 0, 256, 0.75),  # 40 registers after rounding: 6 blocks of 8 warps
        (16, 233_472 // 4 - 1024, 256, 0.5),  # 4 blocks by their shared memory
        (16, 233_472 // 4, 256, 0.375),  # 3, as the system takes 1 KB of each
        (16, 0, 32, 0.5),  # 32 blocks of a warp
    ],
)
def test_occupancy_is_what_nvidias_rules_give(
    registers: int, shared: int, threads: int, share: float
) -> None:
    assert occupancy(registers, shared, threads, DEVICE) == share


def _square(size: int, kept: int | None = None) -> Product:
    return Product(
        1,
        size,
        size,
        size,
        Source((size, size), lambda b, k, m: ((m, k), None)),
        Source((size, size), lambda b, n, m: ((m, n), None)),
        kept=kept,
    )


def test_a_large_product_takes_what_its_multiply_adds_take() -> None:
    tiling = Tiling(128, 128, 8, 8)
    size = 128 * 132  # as many blocks as multiprocessors, in each of 132 rows
    bound = size**3 / (132 * 128)
    # 64 multiply-adds of a thread issue beside 4 reads of 4 floats.
    assert product_cycles(_square(size), tiling, DEVICE) == pytest.approx(bound * 68 / 64)


def test_tensor_cores_take_three_products_for_one() -> None:
    size = 64 * 132 * 8
    product = _square(size)
    bound = size**3 / (132 * 512 / 3)
    assert product_cycles(product, Tiling(64, 64, 8, 4, 16, True), DEVICE) >= bound
    large = replace(DEVICE, l2_bytes_per_cycle=10**9)
    assert product_cycles(product, Tiling(64, 64, 8, 4, 64, True), large) == pytest.approx(
        bound
    )


def test_half_of_the_columns_take_half_of_the_time_where_arithmetic_counts() -> None:
    tiling = Tiling(32, 128, 4, 4)
    size = 128 * 132
    rows = size // 32
    dense = product_cycles(_square(size), tiling, DEVICE)
    half = product_cycles(_square(size, rows * size // 2), tiling, DEVICE)
    assert half / dense == pytest.approx(0.5)


def test_few_positions_take_what_reading_the_weights_takes() -> None:
    product = Product(
        1,
        1 << 16,
        1 << 12,
        1,
        Source((1, 1 << 12), lambda b, k, m: ((m, k), None)),
        Source((1, 1 << 16), lambda b, n, m: ((m, n), None)),
    )
    least = min(product_cycles(product, tiling, DEVICE) for tiling in TILINGS)
    weights = 4 * (1 << 28) / (3350e9 / 1980e6)
    assert weights < least < 3 * weights
