"""Join calls of a program where what is between need not be in memory."""

from dataclasses import replace

from tilewright.targets.kernels.blocks import Strides
from tilewright.targets.kernels.tile import ROWS, VALUES, TileKernel
from tilewright.targets.kernels.tile_windows import TilePlaneKernel
from tilewright.targets.kernels.windows import SOURCE, PlaneKernel
from tilewright.targets.lower.program import Call, Program
from tilewright.targets.lower.sites import Pick, Site
from tilewright.targets.lower.window import Buffer


def fuse_planes(program: Program, pick: Pick) -> None:
    """Let a window move over a layer's planes as soon as a tile of them is computed."""
    readers = _readers(program)
    writers = {
        call.refs[-1].buffer: call
        for call in program.steps
        if isinstance(call, Call) and isinstance(call.kernel, TileKernel)
    }
    gone: set[int] = set()
    steps = []
    for step in program.steps:
        if isinstance(step, Call) and isinstance(step.kernel, PlaneKernel):
            source = step.refs[SOURCE].buffer
            layer = writers.get(source)
            if layer is not None and readers[source] == 1:
                channels = program.constants[layer.refs[ROWS].buffer].size
                joined = _joined(layer, step, channels)
                if joined is not None and _pays(joined, program, pick):
                    gone.add(id(layer))
                    step = joined
        steps.append(step)
    program.steps[:] = [step for step in steps if id(step) not in gone]


def _joined(layer: Call, planes: Call, channels: int) -> Call | None:
    """Return the call for both, or None where the planes are not just what the layer stores.

    `channels` is how many the layer computes.
    """
    tiles, window = layer.kernel, planes.kernel
    assert isinstance(tiles, TileKernel)
    assert isinstance(window, PlaneKernel)
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
    """Say whether one kernel is faster than two."""
    kernel = joined.kernel
    assert isinstance(kernel, TilePlaneKernel)
    plane = kernel.plane
    weights = program.constants[joined.refs[VALUES].buffer].size
    described = (
        f"{plane.name} {plane.shape.kernel}, strides {plane.shape.stride} on {plane.images} x "
        f"{plane.channels} planes of {plane.shape.height} x {plane.shape.width} behind tiles "
        f"of {kernel.layer.heights} with {weights} weights"
    )
    picked = pick(Site("window", described, joined.nodes), ("fused", "apart"))
    return picked.number == 0


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
