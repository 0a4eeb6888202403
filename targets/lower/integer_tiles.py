"""Pack int8 weights for the integer kernel."""

from dataclasses import dataclass

import numpy as np

from tilewright.row_groups import equal_rows
from tilewright.targets.kernels.integer import DOTS
from tilewright.targets.lower.tiles import compressed


@dataclass(frozen=True, eq=False)
class PackedIntegers:
    """Arrays for the integer kernel.

    `values` holds words of int8 (or int16) weights, shown as float32 since they lie among the
    other weights; `offsets`, `table`, `rows` and `starts` are int32. `table` begins with the
    number of tiles, then has five entries a tile. `steps` counts the multiply-adds of one
    position.
    """

    values: np.ndarray
    offsets: np.ndarray
    table: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    most_words: int
    steps: int

    def stored_bytes(self) -> int:
        """Return what a file keeps of this: the values, and the rest compressed."""
        rest = np.concatenate([self.offsets, self.table, self.rows, self.starts])
        return self.values.nbytes + len(compressed(rest))


def pack_integers(
    matrix: np.ndarray, offsets: np.ndarray, dot: str, rows_each: int, dense: bool, zero: int
) -> PackedIntegers:
    """Pack an int8 (outputs, inputs) matrix.

    A tile is up to `rows_each` rows of one zero pattern; with `dense`, zeros are computed like
    any other weight. `offsets` (inputs,) says where a column's activation lies, `zero` is the
    activations' zero point: rows start at minus `zero` times their sum.
    """
    kind = DOTS[dot]
    sums = matrix.astype(np.int64).sum(axis=1) * -zero
    values: list[np.ndarray] = []
    all_offsets: list[np.ndarray] = []
    table: list[tuple[int, int, int, int, int]] = []
    rows: list[int] = []
    starts: list[int] = []
    lists: dict[bytes, int] = {}
    values_at = rows_at = offsets_at = most = steps = 0
    for members, columns in equal_rows(matrix, rows_each, dense):
        key = columns.tobytes()
        inputs = -(-len(columns) // (kind.depth * kind.words)) * kind.depth * kind.words
        if key not in lists:
            lists[key] = offsets_at
            # What the list is padded with is multiplied by zeros; it only must be readable.
            # An empty one takes a place too: the kernel tells lists apart by where they start.
            all_offsets.append(np.resize(offsets[columns], inputs) if inputs else np.zeros(1))
            offsets_at += max(inputs, 1)
        for first in range(0, len(members), rows_each):
            part = members[first : first + rows_each]
            blocks = -(-len(part) // kind.rows)
            # The last row fills up its block: computed and stored again, to the same value.
            part = part + part[-1:] * (blocks * kind.rows - len(part))
            block = np.zeros((len(part), inputs), np.int8)
            block[:, : len(columns)] = matrix[np.ix_(np.asarray(part), columns)]
            packed = _words(block, dot)
            table.append((values_at, lists[key], rows_at, inputs // kind.depth, blocks))
            values.append(packed)
            rows.extend(part)
            starts.extend(int(sums[row]) for row in part)
            values_at += packed.size
            rows_at += len(part)
            most = max(most, inputs // kind.depth)
            steps += len(part) * len(columns)
    return PackedIntegers(
        values=np.concatenate([*values, np.zeros(1, np.float32)]),
        offsets=np.concatenate([*all_offsets, np.zeros(1, np.int32)]).astype(np.int32),
        table=np.asarray([len(table), *np.ravel(table)], np.int32),
        rows=np.asarray(rows, np.int32),
        starts=np.asarray(starts, np.int32),
        most_words=max(most, 1),
        steps=steps,
    )


def _words(block: np.ndarray, dot: str) -> np.ndarray:
    """Order a tile's weights (rows, inputs) as the kernel reads them, as words."""
    kind = DOTS[dot]
    each = block.astype(np.int16) if kind.depth == 2 else block
    words = np.ascontiguousarray(each).view(np.float32)  # (rows, words)
    rows, count = words.shape
    if dot == "amx":
        tiles = words.reshape(rows // kind.rows, 2, 16, count // 16, 16)
        return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2, 4)).ravel()
    return np.ascontiguousarray(
        words.reshape(rows // kind.rows, kind.rows, count).transpose(0, 2, 1)
    ).ravel()
