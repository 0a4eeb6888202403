"""Find the tiles of a weight matrix in its zeros, and pack them for the tile kernel.

Rows with equal zero patterns belong together wherever they stand: the kernel stores each result
to the row it came from, so no permutation of the model and no side channel are needed.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from tilewright.row_groups import equal_rows
from tilewright.targets.kernels.pen import Isa, vector_starts

_WORD = 4  # bytes
# What a step costs beside its multiply-adds, in rows: loading activations and their offset.
_STEP_ROWS = 1.2


@dataclass(frozen=True, eq=False)
class PackedTiles:
    """Arrays for the tile kernel, and the heights of tiles it loops over.

    `values` float32, or int8 in words that are shown as float32; `offsets`, `table` (tiles, 4),
    `rows` and `groups` int32; `groups` has the first tile and the number of tiles of each
    height. `steps` counts the columns of all tiles that are kept, times their rows: the
    multiply-adds of one position.
    """

    values: np.ndarray
    offsets: np.ndarray
    table: np.ndarray
    rows: np.ndarray
    groups: np.ndarray
    heights: tuple[int, ...]
    steps: int

    def stored_bytes(self) -> int:
        """Return what a file keeps of this: the values, and the rest compressed."""
        rest = np.concatenate([self.offsets, self.table.reshape(-1), self.rows])
        return self.values.nbytes + len(compressed(rest))


@dataclass(frozen=True, eq=False)
class _Tile:
    starts: tuple[int, ...]  # first row of each vector, or each row by itself
    columns: np.ndarray
    values: np.ndarray  # in the order in which the kernel reads them
    height: int


def compressed(indices: np.ndarray) -> bytes:
    """Return int32 indices as a file keeps them.

    Lists of offsets rise in small steps: as differences they pack to a fraction.
    """
    return zlib.compress(np.diff(indices, prepend=np.int32(0)).tobytes(), 6)


def pack_for_positions(
    matrix: np.ndarray, offsets: np.ndarray, rows_each: int, dense: bool
) -> PackedTiles:
    """Pack a (outputs, inputs) matrix for lanes = positions.

    A tile is up to `rows_each` rows of one zero pattern; `offsets` (inputs,) says where a
    column's activation lies. With `dense`, zeros are computed like any other weight.
    """
    tiles = []
    for rows, columns in equal_rows(matrix, rows_each, dense):
        for first in range(0, len(rows), rows_each):
            part = rows[first : first + rows_each]
            values = matrix[np.ix_(np.asarray(part), columns)].T.astype(np.float32)
            tiles.append(_Tile(tuple(part), columns, values, len(part)))
    return _assemble(tiles, offsets)


def pack_for_channels(
    matrix: np.ndarray, offsets: np.ndarray, isa: Isa, rows_each: int, dense: bool
) -> PackedTiles:
    """Pack a (outputs, inputs) matrix for lanes = channels.

    A tile is `rows_each` neighbouring rows, and keeps the columns that any of them needs. The
    matrix is float32, or int8: then four weights make a word.
    """
    tiles = []
    for first in range(0, matrix.shape[0], rows_each):
        block = matrix[first : first + rows_each]
        height = block.shape[0]
        columns = np.arange(matrix.shape[1]) if dense else np.flatnonzero(block.any(axis=0))
        lanes = isa.width_for(height)
        starts = vector_starts(height, lanes)
        lane_rows = np.concatenate([np.arange(s, s + lanes) for s in starts])
        values = block[np.ix_(lane_rows, columns)].T
        tiles.append(_Tile(tuple(first + s for s in starts), columns, values, height))
    return _assemble(tiles, offsets)


def sparse_steps(matrix: np.ndarray, rows_each: int) -> float:
    """Estimate the cost of lanes = positions on these zeros, in multiply-adds a position."""
    cost = 0.0
    for rows, columns in equal_rows(matrix, rows_each, dense=False):
        full, rest = divmod(len(rows), rows_each)
        per_column = full * (rows_each + _STEP_ROWS) + (rest + _STEP_ROWS if rest else 0.0)
        cost += per_column * len(columns)
    return cost


def dense_steps(matrix: np.ndarray, rows_each: int) -> float:
    """The same estimate for the dense kernel."""
    outputs, inputs = matrix.shape
    return float(inputs * outputs * (1 + _STEP_ROWS / rows_each))


def _assemble(tiles: list[_Tile], offsets: np.ndarray) -> PackedTiles:
    """Order tiles by height and lay their arrays behind one another.

    Tiles with the same columns share one list of offsets, so a dense layer has a single list.
    """
    tiles = sorted(tiles, key=lambda t: -t.height)
    lists: dict[bytes, int] = {}
    all_offsets: list[np.ndarray] = []
    table: list[tuple[int, int, int, int]] = []
    values_at = rows_at = offsets_at = 0
    for tile in tiles:
        key = tile.columns.tobytes()
        if key not in lists:
            lists[key] = offsets_at
            all_offsets.append(offsets[tile.columns])
            offsets_at += tile.columns.size
        table.append((values_at, lists[key], rows_at, tile.columns.size))
        values_at += tile.values.nbytes // _WORD
        rows_at += len(tile.starts)
    heights = [tile.height for tile in tiles]
    present = sorted(set(heights), reverse=True)
    groups = [(heights.index(height), heights.count(height)) for height in present]
    return PackedTiles(
        values=_joined([_words(t.values) for t in tiles], np.float32),
        offsets=_joined(all_offsets, np.int32),
        table=np.asarray(table, np.int32).reshape(-1, 4),
        rows=np.asarray([s for t in tiles for s in t.starts], np.int32),
        groups=np.asarray(groups, np.int32).reshape(-1, 2),
        heights=tuple(present),
        steps=sum(t.height * t.columns.size for t in tiles),
    )


def _words(values: np.ndarray) -> np.ndarray:
    """Show float32 weights, or four int8 ones a word, as they lie among the weights."""
    return np.ascontiguousarray(values).reshape(-1).view(np.float32)


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    # One element at least: an empty array has no address to give to a kernel. All are of one
    # dtype here: a conversion would change words that happen to spell a signalling NaN.
    return np.concatenate([*(np.asarray(a, dtype) for a in arrays), np.zeros(1, dtype)])
