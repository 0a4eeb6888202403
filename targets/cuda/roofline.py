"""Estimate the cycles of fused functions, before they are scheduled."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import s_tir
from tvm.s_tir.analysis import estimate_tir_flops

from tilewright.targets.cuda.device import Device, stream_cycles
from tilewright.targets.cuda.tile import CYCLES, PRODUCT


def function_cycles(function: Any, device: Device) -> float:
    """Return what a function takes: of arithmetic and memory the longer.

    Of a tile kernel it is what was estimated for its product, unless what else it reads and
    writes takes longer.
    """
    schedule = s_tir.Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    first = schedule.get(blocks[0])
    if first.name_hint == PRODUCT:
        moved = sum(_bytes(buffer) for buffer in function.params)
        return max(float(first.annotations[CYCLES]), stream_cycles(moved, device))
    lanes = device.lanes_fp32 * device.multiprocessors
    arithmetic = _operations(function) / 2 / lanes  # two in a multiply-add
    return max(arithmetic, stream_cycles(_traffic(schedule, blocks, function), device))


def _operations(function: Any) -> float:
    return float(estimate_tir_flops(tvm.IRModule({"main": function})))


def _traffic(schedule: Any, blocks: Sequence[Any], function: Any) -> int:
    """Return the bytes that a function reads and writes: of a table, the entries looked up."""
    reads: dict[Any, int] = {}
    for block in blocks:
        turns = math.prod(int(schedule.get(loop).extent) for loop in schedule.get_loops(block))
        for region in schedule.get(block).reads:
            reads[region.source] = reads.get(region.source, 0) + turns
    return sum(
        min(_bytes(buffer), reads[buffer] * _itemsize(buffer))
        if buffer in reads
        else _bytes(buffer)
        for buffer in function.params
    )


def _bytes(buffer: Any) -> int:
    return math.prod(int(extent) for extent in buffer.shape) * _itemsize(buffer)


def _itemsize(buffer: Any) -> int:
    return int(np.dtype(str(buffer.dtype)).itemsize)
