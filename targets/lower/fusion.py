"""Join calls of a program where what is between need not be in memory."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tilewright.targets.kernels import tile
from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.bottleneck import BottleneckKernel
from tilewright.targets.kernels.tile import TileKernel
from tilewright.targets.kernels.tile_windows import TilePlaneKernel
from tilewright.targets.kernels.windows import SOURCE, PlaneKernel
from tilewright.targets.lower.program import Call, Program
from tilewright.targets.lower.sites import Pick, Site
from tilewright.targets.lower.window import LINE, Buffer

# Elements of a map that are worth keeping where they were computed; of a slice that stays in a
# second-level cache beside weights, as it should and as it may.
_LARGE, _STAYS, _MOST = 1 << 15, 1 << 16, 1 << 17


def fuse_windows(program: Program, threads: int, pick: Pick) -> None:
    """Let a window move over a layer's planes as soon as a tile of them is computed.

    The layer behind follows slice by slice, where there are slices for all of the `threads`
    that are expected: what lies between then stays with the core that computed it.
    """

    def window(layer: Call, planes: Call) -> Call | None:
        joined = _with_window(layer, planes, program)
        return joined if joined is not None and _pays(joined, program, pick) else None

    def projection(first: Call, layer: Call) -> Call | None:
        joined = _with_projection(first, layer, program, threads)
        if joined is None or not _keeps_more(joined, program, threads, pick):
            return None
        offsets = layer.refs[tile.OFFSETS].buffer
        apart, here = _between(first).n, _between(joined).n
        program.constants[offsets] = program.constants[offsets] // apart * here
        return joined

    _join(program, TileKernel, PlaneKernel, SOURCE, window)
    _join(program, TilePlaneKernel, TileKernel, tile.SOURCE, projection)


def _join(
    program: Program,
    front: type,
    back: type,
    source: int,
    joined: Callable[[Call, Call], Call | None],
) -> None:
    """Replace two calls by one, where the second one alone reads what the first one stores.

    `source` is the number of the argument that it reads.
    """
    readers = _readers(program)
    writers = {
        call.refs[-1].buffer: call
        for call in program.steps
        if isinstance(call, Call) and isinstance(call.kernel, front)
    }
    gone: set[int] = set()
    steps = []
    for step in program.steps:
        if isinstance(step, Call) and isinstance(step.kernel, back):
            writer = writers.get(step.refs[source].buffer)
            if writer is not None and readers[writer.refs[-1].buffer] == 1:
                both = joined(writer, step)
                if both is not None:
                    gone.add(id(writer))
                    step = both
        steps.append(step)
    program.steps[:] = [step for step in steps if id(step) not in gone]


def _with_window(layer: Call, planes: Call, program: Program) -> Call | None:
    """Return the call for both, or None where the planes are not just what the layer stores."""
    tiles, window = layer.kernel, planes.kernel
    assert isinstance(tiles, TileKernel)
    assert isinstance(window, PlaneKernel)
    channels = program.constants[layer.refs[tile.ROWS].buffer].size
    if (
        tiles.lanes != "positions"
        or tiles.tail.output_dtypes != ("float32",)
        or window.multiplier != 1
        # A view between may show some of the channels only, or from another one on.
        or window.channels != channels
        or layer.refs[-1] != planes.refs[SOURCE]
        # Windows over nothing but padding.
        or window.rows < 1
    ):
        return None
    tiles = _over_images(tiles, window.images)
    out, source, shape = tiles.tail.outputs[0], window.source, window.shape
    row = (1, shape.height * shape.width)
    if (
        (tiles.height, tiles.width) not in (row, (shape.height, shape.width))
        or (source.y, source.x) != (shape.width, 1)
        or (tiles.images, out.n) != (window.images, source.n)
        or (window.images > 1 and out.b != source.b)
    ):
        return None
    tail = replace(tiles.tail, outputs=(), output_dtypes=())
    kernel = TilePlaneKernel(replace(tiles, tail=tail), window)
    return Call(
        kernel, (*layer.refs[:-1], *planes.refs[:SOURCE]), (*layer.nodes, *planes.nodes)
    )


def _pays(joined: Call, program: Program, pick: Pick) -> bool:
    """Say whether a layer and the window behind it are faster as one kernel."""
    kernel = joined.kernel
    assert isinstance(kernel, TilePlaneKernel)
    plane = kernel.plane
    weights = program.constants[joined.refs[tile.VALUES].buffer].size
    described = (
        f"{plane.name} {plane.shape.kernel}, strides {plane.shape.stride} on {plane.images} x "
        f"{plane.channels} planes of {plane.shape.height} x {plane.shape.width} behind tiles "
        f"of {kernel.layer.heights} with {weights} weights"
    )
    picked = pick(Site("window", described, joined.nodes), ("fused", "apart"))
    return picked.number == 0


def _with_projection(first: Call, layer: Call, program: Program, threads: int) -> Call | None:
    """Return the call for all, or None where the layer does not read each map as one run."""
    kernel, projection = first.kernel, layer.kernel
    assert isinstance(kernel, TilePlaneKernel)
    assert isinstance(projection, TileKernel)
    plane, shape = kernel.plane, kernel.plane.shape
    if plane.tail.output_dtypes != ("float32",) or projection.lanes != "positions":
        return None
    projection = _over_images(projection, plane.images)
    out, source = plane.tail.outputs[0], projection.source
    offsets = program.constants[layer.refs[tile.OFFSETS].buffer]
    if (
        (projection.images, projection.height) != (plane.images, 1)
        or projection.width != shape.out_height * shape.out_width
        or layer.refs[tile.SOURCE] != first.refs[-1]
        or (out.y, out.x, source.x) != (shape.out_width, 1, 1)
        or (plane.images > 1 and out.b != source.b)
        or np.any(offsets % out.n)
    ):
        return None
    kept = _STAYS * shape.stride[0] * shape.stride[1] // plane.channels
    each = shape.height * shape.width * plane.images // threads
    plane = replace(plane, slice_positions=max(1, min(plane.slice_positions, kept, each)))
    positions = plane.slice.out_height * shape.out_width
    here = Strides(0, -(-positions // LINE) * LINE, shape.out_width, 1)
    plane = replace(plane, tail=replace(plane.tail, outputs=(here,)))
    projection = replace(projection, source=replace(source, b=0))
    joined = BottleneckKernel(replace(kernel, plane=plane), projection)
    refs = (*first.refs[:-1], *layer.refs[tile.SOURCE + 1 :])
    return Call(joined, refs, (*first.nodes, *layer.nodes))


def _keeps_more(joined: Call, program: Program, threads: int, pick: Pick) -> bool:
    """Say whether a layer, a window and a layer are faster slice by slice."""
    kernel = joined.kernel
    assert isinstance(kernel, BottleneckKernel)
    plane, projection = kernel.first.plane, kernel.projection
    shape = plane.shape
    results = plane.images * plane.channels * shape.out_height * shape.out_width
    values = tile.VALUES, len(kernel.first.kinds()) - 1 + tile.VALUES - (tile.SOURCE + 1)
    weights = [program.constants[joined.refs[place].buffer].size for place in values]
    described = (
        f"{plane.name} {shape.kernel}, strides {shape.stride} on {plane.images} x "
        f"{plane.channels} planes of {shape.height} x {shape.width} between tiles of "
        f"{kernel.first.layer.heights} with {weights[0]} weights and of {projection.heights} "
        f"with {weights[1]}"
    )
    ways = ["slice by slice", "apart"]
    slices, kept = plane.images * plane.slices, plane.channels * _between(joined).n
    if results < _LARGE or slices < threads or kept > _MOST:
        ways.reverse()
    picked = pick(Site("bottleneck", described, joined.nodes), ways)
    return ways[picked.number] == "slice by slice"


def _between(call: Call) -> Strides:
    """Return where the results of a call's window lie."""
    kernel = call.kernel
    first = kernel.first if isinstance(kernel, BottleneckKernel) else kernel
    assert isinstance(first, TilePlaneKernel)
    return first.plane.tail.outputs[0]


def _over_images(kernel: TileKernel, images: int) -> TileKernel:
    """Show rows of positions as the images that they are."""
    if kernel.images == images or kernel.height != images:
        return kernel

    def lifted(strides: Strides) -> Strides:
        return Strides(strides.y, strides.n, 0, strides.x)

    tail = replace(
        kernel.tail,
        operands=tuple(map(lifted, kernel.tail.operands)),
        outputs=tuple(map(lifted, kernel.tail.outputs)),
    )
    return replace(kernel, images=images, height=1, source=lifted(kernel.source), tail=tail)


def _readers(program: Program) -> dict[Buffer, int]:
    """Count how often a buffer is an argument beside the one that fills it, or an output."""
    counts: dict[Buffer, int] = {}

    def read(buffer: Buffer, times: int = 1) -> None:
        counts[buffer] = counts.get(buffer, 0) + times

    for step in program.steps:
        if isinstance(step, Call):
            for ref in step.refs:
                read(ref.buffer)
        else:
            for _, window in (*step.inputs, *step.outputs):
                read(window.buffer)
    for window in program.outputs.values():
        read(window.buffer, 2)
    return {buffer: count - 1 for buffer, count in counts.items()}
