"""Program -> Relax module -> shared library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx

from tilewright.targets.kernels.pen import Isa, dtype_of, write_prim_func
from tilewright.targets.lower.program import Call, Kernel, Part
from tilewright.targets.lower.window import Buffer

# Links object files into a shared library: (output, objects, options).
Link = Callable[[str, Sequence[str], Sequence[str] | None], None]


@dataclass(frozen=True)
class Bases:
    """Where each buffer starts in its base array, in elements, and which arrays there are."""

    offsets: dict[Buffer, int]
    names: tuple[str, ...]


def relax_module(parts: Sequence[Part], bases: Bases, isa: Isa) -> tvm.IRModule:
    """Return a module with one function a part that has calls, `run_0`, `run_1`, ...

    Each takes the base arrays in the order of `bases.names`. Calls of equal kernels share one
    PrimFunc; only their offsets differ.
    """
    builder = relax.BlockBuilder()
    names: dict[Kernel, str] = {}
    calls = [part for part in parts if isinstance(part, list)]
    for index, part in enumerate(calls):
        arrays = {
            name: relax.Var(name, relax.TensorType(dtype=dtype_of(name), ndim=1))
            for name in bases.names
        }
        with builder.function(f"run_{index}", list(arrays.values())):
            for call in part:
                if call.kernel not in names:
                    names[call.kernel] = f"{call.kernel.name}_{len(names)}"
                builder.emit(_call(call, names[call.kernel], arrays, bases))
            builder.emit_func_output(next(iter(arrays.values())))
    module = builder.get()
    for kernel, name in names.items():
        module[name] = write_prim_func(name, isa, kernel.kinds(), kernel.write)
    for index in range(len(calls)):
        function = f"run_{index}"
        module[function] = module[function].with_attr("relax.force_pure", True)
    return module


def compile_library(module: tvm.IRModule, isa: Isa, path: Path, link: Link) -> None:
    """Compile a module for an instruction set and link it into `path`."""
    register_kernel_pipeline()
    executable = tvm.compile(module, target=llvm_target(isa), tir_pipeline=KERNEL_PIPELINE)
    executable.export_library(str(path), fcompile=link)


def llvm_target(isa: Isa) -> Any:
    """Return TVM's target for an instruction set."""
    features = [f"+{feature}" for feature in isa.features]
    return tvm.target.Target(
        {"kind": "llvm", "mcpu": isa.mcpu, "mattr": features, "opt-level": 3}
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
        ]
    )
    _, *finalize = tvm.tirx.get_tir_pipeline("s_tir")
    return (lower, *finalize)


def _call(call: Call, name: str, arrays: dict[str, Any], bases: Bases) -> Any:
    kinds = sorted(set(call.kernel.kinds()))
    offsets = [relax.prim_value(bases.offsets[ref.buffer] + ref.offset) for ref in call.refs]
    return relax.Call(relax.ExternFunc(name), [*(arrays[k] for k in kinds), *offsets])
