"""What a GPU has, and what a model of it says that kernels take. Nothing here is measured."""

from dataclasses import dataclass, fields

from tilewright.errors import UnusableInput
from tilewright.target import Target
from tilewright.targets.cuda.tiling import Product, Tiling

_FLOAT_BYTES = 4
_TF32_PRODUCTS = 3  # that a product of float32 takes on tensor cores
_ISSUED = 4  # warp instructions of a multiprocessor in a cycle
_WARP = 32
_VECTOR = 4  # floats that a thread reads from shared memory at a time
_REGISTER_UNIT = 256  # registers are given to warps in such pieces
_RESERVED_SHARED = 1024  # bytes of each block that the system keeps, from 8.0 on


@dataclass(frozen=True)
class Device:
    """A GPU, from the table [device] of a target's .toml, where each figure has its source."""

    arch: str
    multiprocessors: int
    lanes_fp32: int
    lanes_tf32: int  # of tensor cores; 0 where there are none for TF32
    clock_mhz: int
    memory_gb_per_s: int
    l2_bytes_per_cycle: int
    memory_latency_cycles: int
    registers: int
    shared_bytes: int
    threads: int
    blocks: int

    @property
    def model(self) -> str:
        """The name that estimates carry."""
        return (
            f"roofline of {self.arch} at {self.clock_mhz} MHz: the longest of multiply-adds, "
            "bandwidth of L2 and memory, and waits, kernel by kernel; launches are free"
        )

    @property
    def bytes_per_cycle(self) -> float:
        """Bytes that memory delivers in a cycle."""
        return self.memory_gb_per_s * 1e3 / self.clock_mhz


def read_device(target: Target) -> Device:
    """Return the device of a target. Raises UnusableInput where its .toml lacks a figure."""
    table = target.settings.get("device", {})
    names = [field.name for field in fields(Device) if field.name != "arch"]
    wrong = [name for name in names if not isinstance(table.get(name), int)]
    arch = str(target.settings.get("arch", ""))
    if wrong or not arch.startswith("sm_"):
        raise UnusableInput(
            f"Target {target.name} does not describe a GPU: "
            + (f"[device] has no whole number for {wrong}. " if wrong else "")
            + (
                f'arch is "{arch}", and not like "sm_90". '
                if not arch.startswith("sm_")
                else ""
            )
            + "Compare with targets/gpu.toml."
        )
    return Device(arch, **{name: table[name] for name in names})


def product_cycles(product: Product, tiling: Tiling, device: Device) -> float:
    """Return the cycles of a tile kernel: the longest of four.

    Multiply-adds; what all blocks bring, through the L2 cache; what is stored, through memory;
    and one block after the other that takes a thread's place. Of a block every step takes as
    long as its multiply-adds or as memory takes to answer, which brings the next meanwhile.
    """
    rows = -(-product.outputs // tiling.outputs)
    blocks = rows * -(-product.positions // tiling.positions) * product.batch
    columns = _packed_columns(product, rows) / rows
    turns = -(-blocks // device.multiprocessors)
    lanes = _lanes(tiling, device)
    step = tiling.outputs * tiling.positions / lanes
    brought = turns * columns * (tiling.outputs + tiling.positions) * _FLOAT_BYTES
    at_once = min(device.blocks, device.threads // tiling.threads)
    turns_alone = -(-turns // at_once)
    waits = turns_alone * -(-columns // tiling.depth)
    # A block of few threads cannot keep all lanes busy.
    alone = step * max(1, device.lanes_fp32 / tiling.threads)
    return max(
        turns * columns * step,
        brought / (device.l2_bytes_per_cycle / device.multiprocessors),
        _product_bytes(product, tiling, rows) / device.bytes_per_cycle,
        turns_alone * device.memory_latency_cycles
        + waits * max(device.memory_latency_cycles, tiling.depth * alone),
    )


def stream_cycles(read_and_written: int, device: Device) -> float:
    """Return the cycles of a kernel that is bound by memory: one wait, then bandwidth."""
    return device.memory_latency_cycles + read_and_written / device.bytes_per_cycle


def occupancy(registers: int, shared_bytes: int, threads: int, device: Device) -> float:
    """Return the share of a multiprocessor's threads that can be resident.

    CUDA C++ Programming Guide, sections "Occupancy Calculator" and "Compute Capability 8.x":
    blocks are limited by registers (given to warps in units of 256), shared memory (1 KB of it
    for the system in each block), threads, and their number.
    """
    warps = -(-threads // _WARP)
    of_warp = -(-registers * _WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    limits = [
        device.blocks,
        device.threads // (warps * _WARP),
        device.shared_bytes // (shared_bytes + _RESERVED_SHARED),
    ]
    if of_warp:
        limits.append(device.registers // of_warp // warps)
    return min(limits) * warps * _WARP / device.threads


def _packed_columns(product: Product, rows: int) -> int:
    return rows * product.columns if product.kept is None else product.kept


def _product_bytes(product: Product, tiling: Tiling, rows: int) -> int:
    steps = _packed_columns(product, rows)
    weights = steps * tiling.outputs
    x = product.batch * product.columns * product.positions
    y = product.batch * product.outputs * product.positions
    if product.w is not None:
        weights = product.batch * product.columns * product.outputs
    lists = 0 if product.kept is None else steps + rows + 1
    return _FLOAT_BYTES * (x + y + weights + lists)


def _lanes(tiling: Tiling, device: Device) -> float:
    """Return the multiply-adds of a multiprocessor in a cycle."""
    if tiling.tensor_cores:
        return device.lanes_tf32 / _TF32_PRODUCTS
    return device.lanes_fp32 * _efficiency(tiling)


def _efficiency(tiling: Tiling) -> float:
    """Return multiply-adds as a share of what a warp can issue beside its shared reads."""
    n, m = tiling.thread_outputs, tiling.thread_positions
    reads = -(-n // _VECTOR) + -(-m // _VECTOR)
    # Shared memory serves one read of a warp in a cycle.
    return n * m / _ISSUED / max((n * m + reads) / _ISSUED, reads)
