"""Work that threads share: every piece is done once, whoever does it."""

from collections.abc import Callable
from functools import cache

import numpy as np
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx

from tests.targets.builds import vector_unit
from tilewright.targets.kernels.pen import Pen, launch_memory, write_prim_func
from tilewright.targets.lower.module import (
    KERNEL_PIPELINE,
    llvm_target,
    register_kernel_pipeline,
)

# Loops over pieces, in one kernel: of how much at most.
LOOPS: tuple[int | None, ...] = (None, 3, 1)


@cache
def counting_kernel(parallel: bool) -> Callable[..., None]:
    """A kernel whose every loop adds one to each of `count` cells, in a row of its own."""

    def body(pen: Pen) -> None:
        count = pen.register(pen.load(0, 0))
        with pen.shared(parallel) as share:
            for row, most in enumerate(LOOPS):
                with share.pieces(count, most) as (low, high), pen.serial(high - low) as i:
                    at = pen.register(1 + row * count + low + i)
                    pen.store(0, at, pen.load(0, at) + 1)

    return compiled(body)


@cache
def parts_kernel(most: int) -> Callable[..., None]:
    def body(pen: Pen) -> None:
        count = pen.register(pen.load(0, 0))
        with pen.parts(most) as share:
            low, high = share.of(count)
            with pen.serial(high - low) as i:
                pen.store(0, 1 + low + i, tirx.const(1, "int32") + share.index)

    return compiled(body)


def compiled(body: Callable[[Pen], None]) -> Callable[..., None]:
    register_kernel_pipeline()
    isa = vector_unit("host")
    module = tvm.IRModule({"k": write_prim_func("k", isa, ("int32",), body)})
    function: Callable[..., None] = tvm.compile(
        module, target=llvm_target(isa), tir_pipeline=KERNEL_PIPELINE
    )["k"]
    return function


@settings(deadline=None, max_examples=40)
@given(
    threads=st.integers(1, 5),
    counts=st.lists(st.integers(0, 100), min_size=1, max_size=4),
)
def test_every_piece_is_done_once_in_every_run(threads: int, counts: list[int]) -> None:
    launch = tvm.runtime.tensor(launch_memory(threads))
    for count in counts:
        cells = tvm.runtime.tensor(np.array([count] + [0] * (len(LOOPS) * count), np.int32))
        counting_kernel(parallel=True)(cells, launch, 0)
        assert (cells.numpy()[1:] == 1).all()


@settings(deadline=None, max_examples=10)
@given(count=st.integers(0, 50))
def test_what_is_not_shared_is_done_by_the_caller_alone(count: int) -> None:
    launch = tvm.runtime.tensor(launch_memory(3))
    cells = tvm.runtime.tensor(np.array([count] + [0] * (len(LOOPS) * count), np.int32))
    counting_kernel(parallel=False)(cells, launch, 0)
    assert (cells.numpy()[1:] == 1).all()
    assert np.array_equal(launch.numpy(), launch_memory(3))


def test_a_kernel_for_few_threads_leaves_nothing_behind_for_the_next() -> None:
    launch = tvm.runtime.tensor(launch_memory(5))
    for _ in range(3):
        counting_kernel(parallel=True)(
            cells := tvm.runtime.tensor(np.array([30] + [0] * 90, np.int32)), launch, 0
        )
        assert (cells.numpy()[1:] == 1).all()
        owned = tvm.runtime.tensor(np.array([9] + [0] * 9, np.int32))
        parts_kernel(2)(owned, launch, 0)
        assert owned.numpy()[1:].tolist() == [1] * 5 + [2] * 4


@settings(deadline=None, max_examples=20)
@given(threads=st.integers(1, 5), count=st.integers(0, 30))
def test_parts_are_next_to_each_other_and_as_equal_as_they_can_be(
    threads: int, count: int
) -> None:
    launch = tvm.runtime.tensor(launch_memory(threads))
    cells = tvm.runtime.tensor(np.array([count] + [0] * count, np.int32))
    parts_kernel(64)(cells, launch, 0)
    owners = cells.numpy()[1:]
    assert (np.diff(owners) >= 0).all()
    sizes = [int((owners == thread + 1).sum()) for thread in range(threads)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
