"""How long it takes to hand work to another core and back: an engine that computes nothing.

Machines that share their cores flip between states in which this takes half a microsecond or
several, and everything else is slower too; engines are compared within one state.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm

from tilewright.target import read_target
from tilewright.targets import FOLDER
from tilewright.targets.cpu import isa_of
from tilewright.targets.cpu_program import prepare_pool
from tilewright.targets.kernels.pen import Pen, launch_memory, write_prim_func
from tilewright.targets.lower.module import (
    KERNEL_PIPELINE,
    llvm_target,
    register_kernel_pipeline,
)
from tilewright.tools.engines import LAUNCHES


def version() -> str:
    """Return the version of what launches."""
    return str(tvm.__version__)


def open_engine(path: str, threads: int) -> Callable[[Mapping[str, np.ndarray]], None]:
    """Return a function that launches work of nothing LAUNCHES times; `path` is not read."""
    prepare_pool(threads)
    isa = isa_of(read_target(FOLDER / "cpu.toml"))

    def nothing(pen: Pen) -> None:
        with pen.parts(threads) as share:
            pen.store(0, share.index * 16, share.index)

    register_kernel_pipeline()
    module = tvm.IRModule({"nothing": write_prim_func("nothing", isa, ("int32",), nothing)})
    built: Any = tvm.compile(module, target=llvm_target(isa), tir_pipeline=KERNEL_PIPELINE)
    launch = built["nothing"]
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    cells = tvm.runtime.tensor(np.zeros(16 * threads, np.int32))
    memory = tvm.runtime.tensor(launch_memory(threads))

    def run(feeds: Mapping[str, np.ndarray]) -> None:
        for _ in range(LAUNCHES):
            launch(cells, memory, 0)

    return run
