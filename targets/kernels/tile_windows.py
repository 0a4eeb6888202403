"""The kernel of a layer and the window behind it: what is between stays in a cache."""

from dataclasses import dataclass

from tvm import tirx

from tilewright.targets.kernels.blocks import cut
from tilewright.targets.kernels.pen import Expr, Local, Pen
from tilewright.targets.kernels.tile import FIRST, TileKernel, vectors_beside
from tilewright.targets.kernels.windows import PlaneKernel, Slice

_CACHED = 1 << 16  # elements of planes that stay in a second-level cache, beside weights


@dataclass(frozen=True)
class TilePlaneKernel:
    """A layer's tiles straight into a window: what is between stays in a cache.

    The rows of tiles are planes: some are computed into a scratch, and the window moves over
    them at once. Arguments are the layer's (its tail has no outputs), then the plane kernel's
    but for its source.
    """

    layer: TileKernel
    plane: PlaneKernel

    @property
    def name(self) -> str:
        """A readable stem for the function's name."""
        return f"tile_{self.plane.name}"

    def kinds(self) -> tuple[str, ...]:
        """Base arrays of the arguments."""
        return (*self.layer.kinds(), *self.plane.behind_source())

    @property
    def parallel(self) -> bool:
        """Whether it pays to wake the threads."""
        return self.layer.parallel or self.plane.parallel

    def write(self, pen: Pen) -> None:
        """Write the function's body."""
        for group, height in enumerate(self.layer.heights):
            self._group(pen, group, height)

    def _group(self, pen: Pen, group: int, height: int) -> None:
        """Run the tiles of one height; the threads share slices before they share tiles."""
        with pen.shared(self.parallel) as share:
            scratch = self.scratch(pen)
            first, tiles = self.layer.group(pen, group)
            count = pen.register(tiles * (self.plane.images * self.plane.slices))
            with share.pieces(count) as (low, high):
                whole = pen.register(low // tiles)
                with pen.serial((high + tiles - 1) // tiles - whole) as i:
                    part = pen.register(whole + i)
                    begin = pen.register(tirx.max(low - part * tiles, 0))
                    end = pen.register(tirx.min(high - part * tiles, tiles))
                    window = pen.behind(len(self.layer.kinds()))
                    self.run_tiles(
                        pen, window, scratch, height, part, first + begin, end - begin
                    )

    def scratch(self, pen: Pen) -> tuple[Local, Local]:
        """Return memory for planes of some tiles, and the window's."""
        most = max(self._together(height) * height for height in self.layer.heights)
        # Reading columns that are apart may touch some behind the last.
        planes = pen.local(most * self.plane.rows * self.plane.shape.width + pen.isa.lanes)
        return planes, self.plane.scratch(pen)

    def _together(self, height: int) -> int:
        """Return how many tiles are computed before the window moves over their planes."""
        return max(1, _CACHED // (height * self.plane.rows * self.plane.shape.width))

    def run_tiles(
        self,
        pen: Pen,
        window: Pen,
        scratch: tuple[Local, Local],
        height: int,
        part: Expr,
        first: Expr,
        count: Expr,
    ) -> None:
        """Compute some tiles of one height, and the windows over them, in one slice.

        `part` is the number of the slice, counted over images; `window` a pen to the plane
        kernel's arguments.
        """
        most = self._together(height)
        with pen.serial((count + most - 1) // most) as batch:
            done = pen.register(batch * most)
            tile = pen.opaque(first + done)
            each = pen.opaque(tirx.min(count - done, most))
            self._slice(pen, window, scratch, height, part, tile, each)

    def _slice(
        self,
        pen: Pen,
        window: Pen,
        scratch: tuple[Local, Local],
        height: int,
        part: Expr,
        tile: Expr,
        count: Expr,
    ) -> None:
        layer, plane = self.layer, self.plane
        planes, padded = scratch
        b = pen.opaque(part // plane.slices)
        y = pen.opaque(part % plane.slices * plane.slice.out_height)
        above = y * plane.shape.stride[0] - plane.shape.top
        last = plane.shape.height - plane.rows
        start = pen.opaque(tirx.max(tirx.min(above, last), 0))
        self._tiles(pen, planes, height, b, start, tile, count)

        def slice_of(r: Expr) -> Slice:
            def read(row: Expr, column: Expr, width: int) -> Expr:
                inside = r * plane.rows + (row - start)
                return planes.load(inside * plane.shape.width + column, width)

            n = pen.opaque(layer.row(pen, tile + r // height, r % height))
            return Slice(read, b, n, y)

        plane.compute(window, padded, count * height, slice_of)

    def _tiles(
        self,
        pen: Pen,
        planes: Local,
        height: int,
        b: Expr,
        start: Expr,
        first: Expr,
        count: Expr,
    ) -> None:
        """Compute the planes of some tiles from row `start` on."""
        layer, plane, width = self.layer, self.plane, self.plane.shape.width
        # The layer may see a map as one row of positions.
        flat = layer.height == 1
        extents = (1, plane.rows * width) if flat else (plane.rows, width)
        lanes = pen.isa.width_for(extents[1])
        y0, x0 = (0, start * width) if flat else (start, 0)
        for nest in cut(*extents, lanes, vectors_beside(pen.isa, height)):
            with (
                nest.walk(pen) as (y, x),
                pen.serial(count) as tile,
                layer.rows_of_block(
                    pen, height, lanes, nest, b, y0 + y, x0 + x, first + tile
                ) as rows,
            ):
                r, n, cells = rows
                own = pen.opaque((tile * height + r) * plane.rows - start)
                for row, column, value in cells:
                    (result,) = layer.tail.run(pen, FIRST, value, (b, n, row, column), lanes)
                    planes.store((own + row) * width + column, result, lanes)
