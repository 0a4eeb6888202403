"""Multiply on tensor cores, as exactly as in float32, by products of TF32.

A float32 is the sum of two TF32 numbers and a rest that does not count: W X = W1 X1 + W1 X2 +
W2 X1, where W2 X2 is left out. NVIDIA's CUTLASS calls it 3xTF32; Ootomo & Yokota, "Recovering
single precision accuracy from Tensor Cores" (2022), say how exact it is. OpenCL has no tensor
cores: there the same call is made of float32 multiply-adds, on the same entries.
"""

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 - TVM's own name for it

from tilewright.targets.cuda.tiling import Matrix, Tiling
from tilewright.targets.kernels.pen import Expr

_NAME = "tilewright_mma"
# Outputs, positions and columns of one instruction, mma.m16n8k8; sums that a thread has of it.
_OUTPUTS, _POSITIONS, _COLUMNS, _SUMS = 16, 8, 8, 4
_WARP = 32
_WARP_OUTPUTS = 32

# Which entries a lane has is told by the PTX ISA, "Matrix fragments for mma.m16n8k8".
CUDA = f"""
__device__ __forceinline__ void tilewright_split(float x, unsigned& high, unsigned& low) {{
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(x));
  high &= 0xffffe000u;  // the other bits of a TF32 may be anything
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(x - __uint_as_float(high)));
}}
__device__ __forceinline__ void tilewright_tf32(
    float* c, const unsigned* a, const unsigned* b) {{
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
__device__ __forceinline__ void {_NAME}(
    float* c, const float* w, int w_stride, const float* x, int x_stride, int lane) {{
  const int group = lane >> 2, member = lane & 3;
  unsigned a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    tilewright_split(w[(member + 4 * (i >> 1)) * w_stride + group + 8 * (i & 1)],
                     a_high[i], a_low[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    tilewright_split(x[(member + 4 * i) * x_stride + group], b_high[i], b_low[i]);
  tilewright_tf32(c, a_low, b_high);
  tilewright_tf32(c, a_high, b_low);
  tilewright_tf32(c, a_high, b_high);
}}
"""
OPENCL = f"""
void {_NAME}(float* c, const __local float* w, int w_stride,
             const __local float* x, int x_stride, int lane) {{
  const int group = lane >> 2, member = lane & 3;
  for (int i = 0; i < 4; ++i) {{
    const int n = group + 8 * (i >> 1), m = 2 * member + (i & 1);
    for (int k = 0; k < 8; ++k) c[i] += w[k * w_stride + n] * x[k * x_stride + m];
  }}
}}
"""


def with_definition(source: str, language: str) -> str:
    """Return "cuda" or "opencl" source with what it calls, where it calls it."""
    definition = CUDA if language == "cuda" else OPENCL
    return definition + source if _NAME in source else source


class Fragments:
    """Each warp has 32 outputs and some positions of its block's; sums go to shared memory."""

    # Rows of shared memory are 8 floats longer, so that lanes read from different banks.
    scope, gap = "shared", 8

    def __init__(self, by: Tiling, sums: Expr, block: tuple[Expr, Expr, Expr]) -> None:
        self.by, self.sums, self.block = by, sums, block
        self.along = by.threads // _WARP // (by.outputs // _WARP_OUTPUTS)
        self.positions = by.positions // self.along
        self.rows, self.columns = _WARP_OUTPUTS // _OUTPUTS, self.positions // _POSITIONS

    def start(self, beside: Expr, along: Expr, thread: Expr) -> None:
        """Set the sums of a thread to zero."""
        warp, self.lane = thread // _WARP, thread % _WARP
        self.first = (
            warp // self.along * _WARP_OUTPUTS,
            warp % self.along * self.positions,
        )
        count = self.rows * self.columns * _SUMS
        self.own = T.sblock_alloc_buffer((count,), "float32", scope="local")
        with T.unroll(count) as i:
            T.buffer_store(self.own, T.float32(0), [i])

    def multiply(self, w: Matrix, x: Matrix) -> None:
        """Add the products of what is in shared memory."""
        n, m = self.first
        _wait_for_block()
        with (
            T.serial(self.by.depth // _COLUMNS) as step,
            T.unroll(self.rows) as i,
            T.unroll(self.columns) as j,
        ):
            k = step * _COLUMNS
            own = self.own[(i * self.columns + j) * _SUMS]
            entries = (w.at(k, n + i * _OUTPUTS), x.at(k, m + j * _POSITIONS))
            of_w, of_x = (tirx.address_of(entry) for entry in entries)
            given = (tirx.address_of(own), of_w, w.stride, of_x, x.stride, self.lane)
            T.evaluate(tirx.call_extern("void", _NAME, *given))
        _wait_for_block()

    def finish(self) -> None:
        """Put the sums where the threads that store them find them."""
        b, first_n, first_m = self.block
        n, m = first_n + self.first[0], first_m + self.first[1]
        group, member = self.lane // 4, self.lane % 4
        with T.unroll(self.rows) as i, T.unroll(self.columns) as j, T.unroll(_SUMS) as k:
            T.buffer_store(
                self.sums,
                self.own[(i * self.columns + j) * _SUMS + k],
                [
                    b,
                    n + i * _OUTPUTS + group + 8 * (k // 2),
                    m + j * _POSITIONS + 2 * member + k % 2,
                ],
            )


def _wait_for_block() -> None:
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
