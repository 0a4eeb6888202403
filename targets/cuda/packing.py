"""Pack the weights of a layer as the tile kernel reads them."""

from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Tiles one behind the other: (steps, outputs of a tile), with a column for each step.

    `starts` says where each tile begins, and where the last ends.
    """

    values: np.ndarray
    columns: np.ndarray
    starts: np.ndarray


def pack_dense(matrix: np.ndarray, outputs: int) -> np.ndarray:
    """Return (outputs, columns) weights as (tiles * columns, outputs of a tile).

    Rows that the last tile lacks are zero.
    """
    tiles = _tiles(matrix, outputs)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1).reshape(-1, outputs))


def pack_sparse(matrix: np.ndarray, outputs: int) -> Packed:
    """Keep the columns of each tile of (outputs, columns) weights that are not all zero."""
    tiles = _tiles(matrix, outputs)
    kept = tiles.any(axis=1)
    tile, column = np.nonzero(kept)
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    values = tiles[tile, :, column]
    return Packed(
        np.ascontiguousarray(values), column.astype(np.int32), starts.astype(np.int32)
    )


def unpack_sparse(packed: Packed, shape: tuple[int, int]) -> np.ndarray:
    """Return the (outputs, columns) weights that were packed."""
    outputs = packed.values.shape[1]
    tiles = np.zeros((len(packed.starts) - 1, outputs, shape[1]), packed.values.dtype)
    tile = np.repeat(np.arange(len(tiles)), np.diff(packed.starts))
    tiles[tile, :, packed.columns] = packed.values
    return tiles.reshape(-1, shape[1])[: shape[0]]


def kept_columns(matrix: np.ndarray, outputs: int) -> int:
    """Count the columns that the tiles of a matrix keep, all tiles together."""
    return int(_tiles(matrix, outputs).any(axis=1).sum())


def _tiles(matrix: np.ndarray, outputs: int) -> np.ndarray:
    """Return (tiles, outputs of a tile, columns), with zeros below the last row."""
    missing = -matrix.shape[0] % outputs
    padded = np.pad(matrix, ((0, missing), (0, 0)))
    return padded.reshape(-1, outputs, matrix.shape[1])
