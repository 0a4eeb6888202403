"""Bind every loop of a module to threads: tile kernels by hand, the rest by TVM's rules."""

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.schedule import ScheduleError

from tilewright.targets.cuda.tile import PRODUCT, STORE

_THREADS = 256  # of a block, where each computes one element
_WIDE = 16_384  # sums: some warps for each multiprocessor of a large GPU
_SHORT = 25  # terms of a sum: a window of 5x5


def schedule(module: Any, target: Any) -> Any:
    """Return the module with all of its PrimFuncs bound to threads of a TVM target."""
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            bound = _with_tail(function) if has_tiles(function) else _by_rules(function, target)
            module[variable] = bound.with_attr("tirx.is_scheduled", True)
    return module


def _by_rules(function: Any, target: Any) -> Any:
    """Bind a function by the first of TVM's rules that takes it."""
    gpu = dlight.gpu
    shared = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction()]
    with target:
        for rule in [*([] if _is_wide(function) else shared), gpu.Fallback()]:
            try:
                found = rule.apply(function, target, False)
                if found is not None:
                    one = found if isinstance(found, s_tir.Schedule) else found[0]
                    _check_sums(one.mod)
                    return one.mod["main"]
            except (ScheduleError, ValueError):
                continue  # a rule that takes what it cannot bind
    raise AssertionError(f"no rule binds {function}")


def _check_sums(module: Any) -> None:
    """Raise ValueError for sums that the threads of a block cannot add up together."""
    s_tir.transform.LowerCrossThreadReduction()(s_tir.transform.CanonicalizeLoop()(module))


def _is_wide(function: Any) -> bool:
    """Say whether each sum may have a thread to itself: they are many, or short."""
    schedule = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        found = schedule.get(block)
        kinds = [int(v.iter_type) for v in found.iter_vars]
        if tirx.IterVar.CommReduce in kinds:
            sums = math.prod(_shape(found.writes[0].source))
            turns = math.prod(
                int(schedule.get(loop).extent) for loop in schedule.get_loops(block)
            )
            return sums >= _WIDE or turns <= sums * _SHORT
    return True


def has_tiles(function: Any) -> bool:
    """Say whether a PrimFunc holds a tile kernel."""
    return STORE in _block_names(s_tir.Schedule(function))


def _block_names(schedule: Any) -> list[str]:
    root = schedule.get_sblock("root")
    return [schedule.get(block).name_hint for block in schedule.get_child_blocks(root)]


def _with_tail(function: Any) -> Any:
    """Compute what TVM fused behind a product where the product is stored.

    From where a result is spread over a larger one, that is a kernel of its own; so is what
    TVM refuses to compute there.
    """
    schedule = s_tir.Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    product, store, *behind = blocks
    names = [schedule.get(block).name_hint for block in (product, store)]
    assert names == [PRODUCT, STORE], f"TVM put {names} first"
    cut = _elementwise(schedule, store, behind)
    joined, apart = behind[:cut], behind[cut:]
    for block in (*joined[:-1], *apart[:-1]):
        schedule.compute_inline(block)
    for block in joined[-1:]:
        try:
            schedule.reverse_compute_inline(block)
        except ScheduleError:  # TVM cannot prove that few positions are stored once each
            _one_thread_an_element(schedule, block)
    for block in apart[-1:]:
        _one_thread_an_element(schedule, block)
    return schedule.mod["main"]


def _elementwise(schedule: Any, store: Any, behind: Sequence[Any]) -> int:
    """Return how many of the blocks behind a store can be computed where it stores.

    Their results have its shape, and the blocks behind them read the last one's alone.
    """
    shape = _shape(schedule.get(store).writes[0].source)
    made = [schedule.get(store).writes[0].source]
    made += [schedule.get(block).writes[0].source for block in behind]
    for cut in range(len(behind), 0, -1):
        hidden = made[:cut]
        rest = [r.source for block in behind[cut:] for r in schedule.get(block).reads]
        if _shape(made[cut]) == shape and not any(
            read.same_as(buffer) for read in rest for buffer in hidden
        ):
            return cut
    return 0


def _shape(buffer: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in buffer.shape)


def _one_thread_an_element(schedule: Any, block: Any) -> None:
    whole = schedule.fuse(*schedule.get_loops(block))
    blocks, threads = schedule.split(whole, factors=[None, _THREADS])
    schedule.bind(blocks, "blockIdx.x")
    schedule.bind(threads, "threadIdx.x")


def tvm_target(arch: str) -> Any:
    """Return TVM's description of a CUDA device, within what every such device has."""
    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": arch,
            "host": "llvm",
            # Threads of a block that each may have all registers it can address.
            "max_num_threads": _THREADS,
            "max_shared_memory_per_block": 49152,
        }
    )
