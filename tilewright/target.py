"""Target: what a device rewards, read from a .toml file whose keys carry their units."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tilewright.errors import UnusableInput
from tilewright.layers import Layer
from tilewright.layout import Pattern, Tile


@dataclass(frozen=True)
class LaneOrder:
    """What the vector lanes hold, and the tile that runs at full speed then.

    A layer with at least `min_positions` positions (and no later order that fits better) runs
    in this order: lanes are positions, or output channels.
    """

    lanes: str
    tile: Tile
    min_positions: int


@dataclass(frozen=True)
class Target:
    """A device as the passes and the lowering see it.

    `backend` names the code that builds for it. `precisions` lists the arithmetics that it has
    kernels for, each with the passes that prepare a model for it. `patterns` are those, such as
    2:4, that it runs faster. `settings` holds what only the backend reads.
    """

    name: str
    backend: str
    about: str
    default_pipeline: str
    orders: Mapping[str, tuple[LaneOrder, ...]]
    precisions: Mapping[str, str] = field(default_factory=lambda: {"fp32": ""})
    patterns: tuple[Pattern, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def default_precision(self) -> str:
        """The arithmetic of models for which no other is asked: floats, where it has them."""
        return "fp32" if "fp32" in self.precisions else next(iter(self.precisions))

    def order_for(self, positions: int, precision: str = "fp32") -> LaneOrder:
        """Return the lane order that runs a layer of so many positions fastest.

        Unknown positions (0) count as many.
        """
        orders = sorted(self.orders[precision], key=lambda o: -o.min_positions)
        for order in orders:
            if positions == 0 or positions >= order.min_positions:
                return order
        return orders[-1]

    def gathers_rows(self, layer: Layer, precision: str = "fp32") -> bool:
        """Say whether the rows of a tile may stand anywhere: where each is stored by itself."""
        return self.order_for(layer.positions, precision).lanes == "positions"

    def tile_for(self, layer: Layer, precision: str = "fp32") -> Tile:
        """Return the tile that this device runs at full speed for this layer."""
        return self.order_for(layer.positions, precision).tile


def read_target(path: Path) -> Target:
    """Read a target description. Raises UnusableInput where a key is missing or wrong."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UnusableInput(
            f'Target "{path}" cannot be read: {error}. Give a name from '
            "`tilewright targets`, or a .toml file like targets/cpu.toml."
        ) from error
    try:
        return _described(table)
    except KeyError as error:
        raise UnusableInput(
            f'Target "{path}" is not complete: the key {error} is missing. '
            "Compare with targets/cpu.toml."
        ) from error
    except (TypeError, ValueError) as error:
        raise UnusableInput(
            f'Target "{path}" has a wrong value: {error}. Compare with targets/cpu.toml.'
        ) from error


_T = TypeVar("_T")
# What a value may be, as .toml files and their readers call it.
_KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "a table",
}
_LANES = ("positions", "channels")


def _described(table: dict[str, Any]) -> Target:
    """Return what a table says. Raises KeyError, and TypeError or ValueError."""
    orders = {
        dtype: tuple(_order(entry) for entry in _checked(list, f"orders.{dtype}", entries))
        for dtype, entries in _take(dict, table, "orders").items()
    }
    patterns = _checked(list, "patterns", table.pop("patterns", []))
    _checked(int, "threads", table.get("threads", 0))
    return Target(
        name=_take(str, table, "name"),
        backend=_take(str, table, "backend"),
        about=_take(str, table, "about"),
        default_pipeline=_take(str, table, "default_pipeline"),
        orders=orders,
        precisions=_checked(dict, "precisions", table.pop("precisions", {"fp32": ""})),
        patterns=tuple(Pattern.parse(_checked(str, "patterns", text)) for text in patterns),
        settings=table,
    )


def _order(entry: Any) -> LaneOrder:
    table = dict(_checked(dict, "orders", entry))
    lanes = _take(str, table, "lanes")
    if lanes not in _LANES:
        raise ValueError(f'lanes is "{lanes}" and must be {" or ".join(_LANES)}')
    tile = Tile.parse(_take(str, table, "tile"))
    return LaneOrder(lanes, tile, _take(int, table, "min_positions"))


def _take(kind: type[_T], table: dict[str, Any], key: str) -> _T:
    return _checked(kind, key, table.pop(key))


def _checked(kind: type[_T], key: str, value: Any) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{key} is {value!r} and must be {_KINDS[kind]}")
    return value
