"""Program -> Relax module -> shared library."""

import difflib
import functools
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tvm
from tvm import relax, tirx
from tvm.target.codegen import llvm_get_cpu_archlist, llvm_is_valid_cpu

from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.protocol import Report
from tilewright.targets.kernels.pen import Isa, bases_of, dtype_of, write_prim_func
from tilewright.targets.link import Link
from tilewright.targets.lower.program import Call, Kernel
from tilewright.targets.lower.window import Buffer


class Piece(NamedTuple):
    """Calls that run in a row, and where each buffer starts in its base array, in elements."""

    calls: Sequence[Call]
    offsets: Mapping[Buffer, int]


def compile_library(
    pieces: Sequence[Piece],
    names: Sequence[str],
    isa: Isa,
    path: Path,
    link: Link,
    report: Report,
) -> None:
    """Compile pieces of programs for an instruction set and link them into `path`.

    `names` are the base arrays that there are.
    """
    register_kernel_pipeline()
    kernels = dict.fromkeys(call.kernel for piece in pieces for call in piece.calls)
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        objects = [Path(folder) / f"{function_name(kernel)}.o" for kernel in kernels]
        # Threads are enough: TVM does not hold the interpreter while it compiles.
        with ThreadPoolExecutor(oracle.cores()) as pool:
            compiled = pool.map(lambda kernel: _kernel_object(kernel, isa), kernels)
            for index, (object_, content) in enumerate(zip(objects, compiled, strict=True)):
                object_.write_bytes(content)
                report(f"compiled {index + 1} of {len(kernels)} kernels")

        executable = tvm.compile(relax_module(pieces, names), target=llvm_target(isa))
        executable.export_library(
            str(path), fcompile=_LinkWith(list(map(str, objects)), link, isa)
        )


@dataclass(frozen=True)
class _LinkWith:
    """Links what TVM exports with the kernels' objects.

    It knows a triple, so TVM gives it the virtual machine's code as an object. Otherwise that
    is a table in C, which takes longer to compile than all of the linking does.
    """

    kernels: list[str]
    link: Link
    isa: Isa

    def __call__(self, output: str, exported: Sequence[str], options: Any = None) -> None:
        # The module that imports the virtual machine's is an empty C source.
        objects = [file for file in exported if not file.endswith(".c")]
        self.link(output, [*objects, *self.kernels], None)

    def get_target_triple(self) -> str:
        return self.isa.triple or str(tvm.target.codegen.llvm_get_system_triple())


def relax_module(pieces: Sequence[Piece], names: Sequence[str]) -> tvm.IRModule:
    """Return a module with one function a piece, `run_0`, `run_1`, ...

    Each takes the base arrays in the order of `names`. Calls of equal kernels call one
    function; only their offsets differ.
    """
    builder = relax.BlockBuilder()
    for index, piece in enumerate(pieces):
        arrays = {
            name: relax.Var(name, relax.TensorType(dtype=dtype_of(name), ndim=1))
            for name in names
        }
        with builder.function(f"run_{index}", list(arrays.values())):
            for call in piece.calls:
                builder.emit(_call(call, arrays, piece.offsets))
            builder.emit_func_output(next(iter(arrays.values())))
    module = builder.get()
    for index in range(len(pieces)):
        function = f"run_{index}"
        module[function] = module[function].with_attr("relax.force_pure", True)
    return module


@functools.lru_cache(maxsize=512)
def _kernel_object(kernel: Kernel, isa: Isa) -> bytes:
    """Return the object file of one kernel: another model, or another try, may need it too."""
    name = function_name(kernel)
    function = write_prim_func(name, isa, kernel.kinds(), kernel.write)
    executable = tvm.compile(
        tvm.IRModule({name: function}), target=llvm_target(isa), tir_pipeline=KERNEL_PIPELINE
    )
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        path = Path(folder) / "kernel.o"
        executable.mod.write_to_file(str(path), "o")
        return path.read_bytes()


def function_name(kernel: Kernel) -> str:
    """Return the name of a kernel's function in a library."""
    return f"{kernel.name}_{hashlib.sha256(repr(kernel).encode()).hexdigest()[:16]}"


def llvm_target(isa: Isa) -> Any:
    """Return TVM's target for an instruction set.

    Raises UnusableInput for an `mcpu` that LLVM has not: it would take the plainest core.
    """
    features = [f"+{feature}" for feature in isa.features]
    machine = {"mtriple": isa.triple} if isa.triple else {}
    if not llvm_is_valid_cpu(isa.mcpu, isa.triple):
        known = llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", **machine}))
        near = difflib.get_close_matches(isa.mcpu, known)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnusableInput(
            f'The target\'s mcpu is "{isa.mcpu}", and LLVM has no such CPU.{hint} Correct it '
            "in the target's .toml."
        )
    return tvm.target.Target(
        {"kind": "llvm", "mcpu": isa.mcpu, "mattr": features, "opt-level": 3, **machine}
    )


KERNEL_PIPELINE = "tilewright"


def register_kernel_pipeline() -> None:
    """Let `tvm.compile` know our lowering by the name KERNEL_PIPELINE."""
    tvm.tirx.register_tir_pipeline(KERNEL_PIPELINE, _kernel_pipeline)


def _kernel_pipeline() -> tuple[Any, Any, Any]:
    """Return TVM's lowering without the passes that our kernels leave nothing to do.

    They come without blocks, without buffers to place, and vectorized; walking their long
    unrolled bodies with every schedule pass took two thirds of the compile time.
    """
    passes = tirx.transform
    lower = tvm.ir.transform.Sequential(
        [
            passes.FlattenBuffer(),
            passes.NarrowDataType(32),
            passes.StmtSimplify(),
            passes.CommonSubexprElim(),
            passes.VerifyMemory(),
            passes.AnnotateEntryFunc(),
            passes.SplitHostDevice(),
            passes.MakePackedAPI(),
            # That arguments are what they should be: run_0, ... have looked at them, and there
            # are more such instructions than all others of a small kernel.
            passes.SkipAssert(),
        ]
    )
    _, *finalize = tvm.tirx.get_tir_pipeline("s_tir")
    return (lower, *finalize)


def _call(call: Call, arrays: dict[str, Any], places: Mapping[Buffer, int]) -> Any:
    kinds = bases_of(call.kernel.kinds())
    offsets = [relax.prim_value(places[ref.buffer] + ref.offset) for ref in call.refs]
    function = relax.ExternFunc(function_name(call.kernel))
    return relax.Call(function, [*(arrays[k] for k in kinds), *offsets])
