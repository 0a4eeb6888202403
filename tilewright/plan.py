"""Plan: how much where. A JSON file from items (layers, mostly) to their levels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.errors import UnknownName, UnusableInput
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.layout import Layout, Pattern, Tile
from tilewright.row_groups import gathered
from tilewright.target import Target

# Some weights outside pruned tiles are zero by chance or were so from the start.
_ACCOUNTED = 0.95

# Patterns that devices execute, the narrowest group first: 1:2 is 2:4, too.
_PATTERNS = (Pattern(1, 2), Pattern(1, 4), Pattern(2, 4), Pattern(4, 8))
# So many groups, each with just the zeros of a pattern, are no chance.
_CERTAIN = 32

# What a level may hold: these are all that passes read.
_KEYS = ("channels", "sparsity", "tile")

Value = float | int | str
Level = Mapping[str, Value]


@dataclass(frozen=True)
class Plan:
    """Levels by item, such as {"conv_3": {"sparsity": 0.6, "tile": "4x1"}}."""

    levels: Mapping[str, Level] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the JSON text: sorted keys, one item a line, a newline at the end."""
        lines = [
            f"  {json.dumps(item)}: {json.dumps(dict(level), sort_keys=True)}"
            for item, level in sorted(self.levels.items())
        ]
        body = ",\n".join(lines)
        return f'{{"levels": {{\n{body}\n}}}}\n' if lines else '{"levels": {}}\n'

    def items(self, *keys: str) -> list[str]:
        """Return the items whose level has any of some keys, such as "channels"."""
        return sorted(item for item, level in self.levels.items() if level.keys() & set(keys))

    def write(self, path: Path) -> None:
        """Write the JSON file; equal plans are equal bytes."""
        path.write_text(str(self), encoding="utf-8")

    @classmethod
    def parse(cls, text: str, where: str = "plan") -> "Plan":
        """Read the JSON text. Raises UnusableInput, naming `where`, on anything else."""
        try:
            table = json.loads(text, object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise UnusableInput(
                f"{where} is not a JSON file: {error}. "
                'Write {"levels": {"layer": {"sparsity": 0.6, "tile": "4x1"}}}.'
            ) from error
        if not isinstance(table, dict) or set(table) != {"levels"}:
            raise UnusableInput(
                f'{where} must be an object with the one key "levels", '
                f"but it is {_described(table)}."
            )
        levels = table["levels"]
        if not isinstance(levels, dict):
            raise UnusableInput(
                f'"levels" of {where} must map items to levels, but it is {_described(levels)}.'
            )
        for item, level in levels.items():
            _check_level(item, level, where)
        return cls(levels)

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """Read a file that `write` wrote. Raises UnusableInput where that is not possible."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnusableInput(
                f'Plan "{path}" cannot be read: {error}. Give a JSON file as --plan.'
            ) from error
        return cls.parse(text, f'Plan "{path}"')


def shares_of(value: Value) -> tuple[float, ...]:
    """Read what a level says of "channels": 0.25, or "0.25|0", one share a dimension.

    Raises ValueError, which says what they must be.
    """
    try:
        shares = tuple(map(float, value.split("|"))) if isinstance(value, str) else (value,)
    except ValueError:
        shares = (np.nan,)
    if not all(0 <= share < 1 for share in shares):
        raise ValueError('not a number from 0 to below 1, or several such as "0.25|0"')
    return shares


def channels_of(shares: Sequence[float]) -> Value:
    """Return what `shares_of` reads."""
    each = [round(share, 6) for share in shares]
    return each[0] if len(each) == 1 else "|".join(f"{share:g}" for share in each)


def plan_of(graph: Graph, target: Target) -> Plan:
    """Read back from a graph's zeros how each layer was pruned.

    A layer's tile is the target's for it, or else the largest of the target's tiles that
    accounts for its zeros. Else it has a pattern, where each of many groups has just the zeros
    that it asks for, or the tile is a single weight. Layers without zero tiles are not named.
    """
    others = {order.tile for order in target.orders.get("fp32", ())}
    levels: dict[str, Level] = {}
    for layer in linear_layers(graph):
        zeros = layer.matrix() == 0
        first = target.tile_for(layer)
        rest = sorted(others - {first}, key=lambda t: (-t.outputs * t.inputs, str(t)))
        tiles = [tile for tile in (first, *rest) if tile != Tile(1)]
        layouts: list[Layout] = [*tiles, *_PATTERNS, Tile(1)]
        for layout in layouts:
            if share := _explained(zeros, layout, layer.taps, target.gathers_rows(layer)):
                levels[layer.name] = {"sparsity": round(share, 6), "tile": str(layout)}
                break
    return Plan(levels)


def _explained(zeros: np.ndarray, layout: Layout, taps: int, gathers: bool) -> float:
    """Return the sparsity in a layout that accounts for a layer's zeros, or 0."""
    if isinstance(layout, Pattern):
        return layout.sparsity if _follows(zeros, layout, taps) else 0.0
    empty = empty_tiles(zeros, layout, gathers)
    accounted = _area(empty, layout, zeros.shape) >= _ACCOUNTED * zeros.sum()
    return float(empty.mean()) if accounted else 0.0


def _follows(zeros: np.ndarray, pattern: Pattern, taps: int) -> bool:
    """Say whether each group of inputs has as many zeros as it may have, and they are many."""
    of, limits = pattern.groups(zeros.shape[1], taps)
    if len(zeros) * np.count_nonzero(limits) < _CERTAIN:
        return False
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(limits)))
    return bool((np.add.reduceat(zeros[:, order], starts, axis=1, dtype=int) == limits).all())


def empty_tiles(zeros: np.ndarray, tile: Tile, gathers: bool) -> np.ndarray:
    """Return which tiles hold zeros only, (row tiles, column blocks).

    The rows of a tile are neighbours, or with `gathers` those that were pruned together
    (row_groups.py).
    """
    if gathers:
        zeros = zeros[gathered(~zeros, tile.outputs)]
    outputs, inputs = zeros.shape
    rows, columns = -(-outputs // tile.outputs), -(-inputs // tile.inputs)
    padded = np.ones((rows * tile.outputs, columns * tile.inputs), dtype=bool)
    padded[:outputs, :inputs] = zeros
    split = padded.reshape(rows, tile.outputs, columns, tile.inputs)
    return np.asarray(split.all(axis=(1, 3)))


def _area(empty: np.ndarray, tile: Tile, shape: tuple[int, ...]) -> int:
    """Count the weights in the empty tiles; tiles at the border are smaller."""
    heights = np.minimum(tile.outputs, shape[0] - tile.outputs * np.arange(empty.shape[0]))
    widths = np.minimum(tile.inputs, shape[1] - tile.inputs * np.arange(empty.shape[1]))
    return int(heights @ empty @ widths)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f'"{key}" occurs twice')
        table[key] = value
    return table


def _check_level(item: str, level: object, where: str) -> None:
    if not isinstance(level, dict):
        raise UnusableInput(
            f'Level of "{item}" in {where} must be an object like {{"sparsity": 0.6}}, '
            f"but it is {_described(level)}."
        )
    for key, value in level.items():
        if key not in _KEYS:
            raise UnknownName(f'key for "{item}" in {where} called', key, _KEYS)
        if isinstance(value, bool) or not isinstance(value, float | int | str):
            raise UnusableInput(
                f'"{key}" of "{item}" in {where} must be a number or a text, '
                f"but it is {_described(value)}."
            )


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {sorted(value)}"
    return json.dumps(value)
