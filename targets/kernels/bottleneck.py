"""The kernel of a layer, the window behind it, and the layer behind that, slice by slice."""

from dataclasses import dataclass, replace

from tilewright.targets.kernels.pen import Expr, Pen
from tilewright.targets.kernels.tile import SOURCE, TileKernel
from tilewright.targets.kernels.tile_windows import TilePlaneKernel


@dataclass(frozen=True)
class BottleneckKernel:
    """Expand, move a window, project: of what is between, a slice of rows is there at a time.

    Arguments are the first kernel's but for its output, then the projection's but for its
    source: these are scratch memory, which holds the window's results for one slice as if the
    whole map lay there.
    """

    first: TilePlaneKernel
    projection: TileKernel

    name = "bottleneck"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*self.first.kinds()[:-1], *self.projection.kinds()[SOURCE + 1 :])

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        plane, own = self.first.plane, len(self.first.kinds()) - 1
        with pen.shared(self.first.parallel or self.projection.parallel) as share:
            scratch = self.first.scratch(pen)
            between = pen.local(plane.channels * plane.tail.outputs[0].n)
            count = plane.images * plane.slices
            with share.pieces(count) as (low, high), pen.serial(high - low) as i:
                part = pen.opaque(low + i)
                begin = pen.opaque(part % plane.slices * self._positions)
                here = between.behind(0 - begin)
                expanding = pen.beside(own, here)
                projecting = pen.behind(own).beside(SOURCE, here)
                window = expanding.behind(len(self.first.layer.kinds()))
                for group, height in enumerate(self.first.layer.heights):
                    tiles = self.first.layer.group(pen, group)
                    self.first.run_tiles(expanding, window, scratch, height, part, *tiles)
                self._project(projecting, pen.opaque(part // plane.slices), begin)

    @property
    def _positions(self) -> int:
        """Results of a window in a slice."""
        return self.first.plane.slice.out_height * self.first.plane.shape.out_width

    def _project(self, pen: Pen, b: Expr, begin: Expr) -> None:
        """Run the projection on one slice, from position `begin` of image b on."""
        layer = replace(self.projection, width=self._positions)
        for group, height in enumerate(layer.heights):
            first, count = layer.group(pen, group)
            for nest, block in layer.blocks(pen, height):
                with nest.walk(pen) as (y, x), pen.serial(count) as tile:
                    block(b, y, begin + x, first + tile)
