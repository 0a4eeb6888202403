"""Decide how each product runs, dense or in tiles, and write its kernel."""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from tvm import relax

from tilewright.errors import UnusableInput
from tilewright.layers import Layer
from tilewright.protocol import LayerDecision
from tilewright.target import Target
from tilewright.targets.cuda.constants import legalized
from tilewright.targets.cuda.device import Device, product_cycles
from tilewright.targets.cuda.packing import kept_columns, pack_dense, pack_sparse
from tilewright.targets.cuda.products import Call, convolution, multiplication
from tilewright.targets.cuda.tile import tile_kernel
from tilewright.targets.cuda.tiling import Product, Tiling, computed

# Outputs and positions of a block and of a thread. Blocks for many positions reuse more; those
# for few keep more multiprocessors busy.
_BLOCKS = (
    (128, 128, 8, 8),
    (128, 64, 8, 4),
    (64, 64, 4, 4),
    (64, 32, 4, 2),
    (64, 16, 4, 2),
    (64, 8, 2, 2),
    (32, 128, 4, 4),
    (32, 64, 4, 4),
    (32, 32, 4, 2),
    (32, 16, 2, 2),
    (32, 8, 2, 1),
    (32, 4, 1, 1),
    (16, 128, 4, 4),
    (16, 32, 2, 2),
    (16, 8, 1, 1),
)
# The same where warps multiply on tensor cores.
_TENSOR_BLOCKS = (
    (64, 64, 8, 4),
    (64, 32, 4, 4),
    (32, 64, 4, 4),
    (32, 32, 4, 2),
)
_DEPTHS = (16, 32, 64)
_SHARED_BYTES = 49_152  # that a block has without asking for more
_ALIKE = 1.1  # times that the model of a device is not so exact as to tell apart
_COMING = 32  # registers of a thread for the next step, beside its sums
TILINGS = tuple(
    tiling
    for tensor_cores, blocks in ((False, _BLOCKS), (True, _TENSOR_BLOCKS))
    for block in blocks
    for depth in _DEPTHS
    if (tiling := Tiling(*block, depth, tensor_cores)).shared_bytes <= _SHARED_BYTES
    and tiling.coming <= _COMING
)
TILES = tuple(sorted({block[0] for block in _BLOCKS}))  # outputs that a sparse tile may have


class Choice(NamedTuple):
    """How a product runs, what the model of the device says that it takes, and why so."""

    product: Product
    tiling: Tiling
    cycles: float
    reason: str


class Layers:
    """Builds the kernels of a graph's products, and keeps what it decided for each layer."""

    def __init__(self, layers: Iterable[Layer], device: Device, tile: int) -> None:
        self._layers, self._device, self._tile = list(layers), device, tile
        self._decided: dict[str, LayerDecision] = {}
        # Relax knows no names of nodes: a layer is known by its weights.
        self._waiting: dict[bytes, deque[Layer]] = defaultdict(deque)
        for layer in self._layers:
            self._waiting[_digest(layer.matrix())].append(layer)

    def legalizers(self) -> dict[str, Callable[[Any, Any], Any]]:
        """Return what builds the kernels of Relax operators, by operator."""
        return {
            "relax.nn.conv2d": lambda builder, call: self._build(builder, call, convolution),
            "relax.matmul": lambda builder, call: self._build(builder, call, multiplication),
        }

    def told(self) -> list[LayerDecision]:
        """Return how each layer runs, once all were built."""
        return [self._decided.get(layer.name) or _left_to_tvm(layer) for layer in self._layers]

    def _build(self, builder: Any, call: Any, read: Callable[[Any, Any], Call | None]) -> Any:
        found = read(builder, call)
        if found is None:
            return legalized(builder, call)
        choice = choose(found, self._device, self._tile)
        x, w = call.args
        operands = [x, w] if found.matrix is None else [x, *_packed(found.matrix, choice)]
        name = "product" if choice.product.kept is None else "sparse_product"
        kernel = builder.add_func(
            tile_kernel(choice.product, choice.tiling, choice.cycles), name
        )
        if found.matrix is not None:
            self._decide(found.matrix, choice)
        return relax.call_tir(kernel, operands, relax.TensorType(found.shape, "float32"))

    def _decide(self, matrix: np.ndarray, choice: Choice) -> None:
        waiting = self._waiting[_digest(matrix)]
        if not waiting:
            return  # a product that TVM made of other operators
        layer = waiting.popleft()
        product, tiling = choice.product, choice.tiling
        tiles = -(-product.outputs // tiling.outputs)
        steps = tiles * product.columns if product.kept is None else product.kept
        lists = 0 if product.kept is None else 4 * (steps + tiles + 1)
        sparse = product.kept is not None
        self._decided[layer.name] = LayerDecision(
            layer.name,
            str(layer.node.op),
            (product.outputs, product.columns, product.batch * product.positions),
            f"{tiling.outputs}x1" if sparse else "dense",
            round(steps / (tiles * product.columns), 6) if sparse else 1.0,
            32,
            4 * steps * tiling.outputs + lists,
            f"{'sparse' if sparse else 'dense'} {tiling.outputs}x{tiling.positions}"
            + (" on tensor cores" if tiling.tensor_cores else ""),
            choice.reason,
        )


def choose(call: Call, device: Device, tile: int) -> Choice:
    """Return the fastest way to run a product, by the model of the device.

    Sparse tiles have `tile` outputs.
    """
    dense, dense_cycles = _best(call.product, TILINGS, device)
    if call.matrix is None:
        return Choice(call.product, dense, dense_cycles, "both operands are activations")
    kept = kept_columns(call.matrix, tile)
    if kept == -(-call.product.outputs // tile) * call.product.columns:
        return Choice(call.product, dense, dense_cycles, f"no tile of {tile}x1 is zero")
    # A list without entries would be a buffer without bytes.
    product = replace(call.product, kept=max(kept, 1))
    narrow = [tiling for tiling in TILINGS if tiling.outputs == tile]
    sparse, cycles = _best(product, narrow, device)
    told = f"{cycles:.0f} estimated cycles in tiles of {tile}x1, {dense_cycles:.0f} dense"
    if cycles >= dense_cycles:
        return Choice(call.product, dense, dense_cycles, told)
    return Choice(product, sparse, cycles, told)


def _left_to_tvm(layer: Layer) -> LayerDecision:
    reason = "it has groups" if layer.groups > 1 else "it is no product of float32 matrices"
    return LayerDecision(
        layer.name,
        str(layer.node.op),
        (layer.outputs, layer.inputs, layer.positions),
        "dense",
        1.0,
        8 * layer.weight.values.itemsize,
        layer.weight.values.nbytes,
        "TVM's schedule",
        f"{reason}: not a tile kernel",
    )


def _best(product: Product, tilings: Iterable[Tiling], device: Device) -> tuple[Tiling, float]:
    """Return a tiling that is fast: of those that the model cannot tell apart, the smallest."""
    each = [
        (tiling, product_cycles(product, tiling, device))
        for tiling in tilings
        if device.lanes_tf32 or not tiling.tensor_cores
    ]
    least = min(cycles for _, cycles in each)
    near = [way for way in each if way[1] <= _ALIKE * least]
    return min(near, key=lambda way: (computed(product, way[0]), way[1]))


def _packed(matrix: np.ndarray, choice: Choice) -> list[Any]:
    if choice.product.kept is None:
        return [relax.const(pack_dense(matrix, choice.tiling.outputs))]
    packed = pack_sparse(matrix, choice.tiling.outputs)
    values, columns = packed.values, packed.columns
    if not len(columns):
        values, columns = (
            np.zeros((1, choice.tiling.outputs), np.float32),
            np.zeros(1, np.int32),
        )
    return [relax.const(array) for array in (values, columns, packed.starts)]


def _digest(matrix: np.ndarray) -> bytes:
    return hashlib.sha256(
        np.ascontiguousarray(matrix).tobytes() + str(matrix.shape).encode()
    ).digest()


def sparse_tile(target: Target) -> int:
    """Return the outputs of a sparse tile. Raises UnusableInput where no kernel has so many."""
    tile = target.order_for(0).tile
    if tile.inputs != 1 or tile.outputs not in TILES:
        raise UnusableInput(
            f"Target {target.name} asks for tiles of {tile}; the gpu backend has kernels for "
            f"{', '.join(f'{outputs}x1' for outputs in TILES)}. Change [[orders.fp32]]."
        )
    return tile.outputs
