"""Bind the dimensions that a model leaves open to sizes, by name or by input and axis."""

import shlex
from collections.abc import Iterator, Mapping

import onnx

from tilewright.errors import UnusableInput


def bind_dims(
    model: onnx.ModelProto,
    dims: Mapping[str, int],
    where: str,
    defaults: Mapping[str, int] | None = None,
) -> None:
    """Give every open dimension of the model's inputs a size, in place.

    A key is a symbol ("batch", binding it everywhere) or "input:axis" (binding that one place,
    for symbols like "?" and dimensions without a name). Recorded shapes of all other tensors
    are dropped where they are not fixed, since they may belong to other sizes. `defaults` hold
    for what `dims` says nothing of, and may say too much.

    Raises UnusableInput for keys that bind nothing, sizes below 1, and dimensions left open.
    """
    for key, size in dims.items():
        if size < 1:
            raise UnusableInput(f"--dim {key}={size}: a size must be at least 1.")
    used: set[str] = set()
    open_keys: list[str] = []
    for value in model.graph.input:
        for axis, dim in enumerate(_dims(value)):
            place = f"{value.name}:{axis}"
            if _is_fixed(dim):
                _check_fixed(place, dim, dims, used)
                continue
            symbol = str(dim.dim_param)
            for sizes, key in [(t, k) for t in (dims, defaults or {}) for k in (place, symbol)]:
                if key in sizes:
                    used.add(key)
                    dim.dim_value = sizes[key]
                    break
            else:
                open_keys.append(_key(dim, place))
    if unknown := [key for key in dims if key not in used]:
        known = ", ".join(f'"{key}"' for key in dict.fromkeys([*sorted(used), *open_keys]))
        given = f"{unknown[0]}={dims[unknown[0]]}"
        several = "," in given and given.count("=") > 1
        each = " ".join(f"--dim {part.strip()}" for part in given.split(","))
        raise UnusableInput(
            f"--dim {given}: {where} has no such open dimension. "
            f"It has {known or 'none at all'}."
            + (f" Repeat the option for each: {each}" if several else "")
        )
    if open_keys:
        flags = " ".join(f"--dim {shlex.quote(key)}=N" for key in dict.fromkeys(open_keys))
        count = len(set(open_keys))
        raise UnusableInput(
            f"{where} leaves {count} dimension{'s' if count > 1 else ''} open, and a compiled "
            f"model has fixed shapes. Add, with your sizes for N: {flags}"
        )
    _forget_recorded_shapes(model.graph)


def _key(dim: onnx.TensorShapeProto.Dimension, place: str) -> str:
    """Return the key to suggest: the symbol, if it can stand for one size wherever it is."""
    if not dim.dim_param.strip() or dim.dim_param == "?":
        return place
    return str(dim.dim_param)


def _check_fixed(
    place: str, dim: onnx.TensorShapeProto.Dimension, dims: Mapping[str, int], used: set[str]
) -> None:
    if place not in dims:
        return
    if dims[place] != dim.dim_value:
        raise UnusableInput(
            f"--dim {place}={dims[place]}: the model fixes this dimension to {dim.dim_value}. "
            "Leave the option out."
        )
    used.add(place)


def _is_fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    # Exporters write open dimensions as 0 and -1 too.
    return bool(dim.HasField("dim_value") and dim.dim_value > 0)


def _dims(value: onnx.ValueInfoProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    if value.type.HasField("tensor_type"):
        yield from value.type.tensor_type.shape.dim


def _forget_recorded_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for value in graph.output:
        for dim in _dims(value):
            if not _is_fixed(dim):
                dim.Clear()
    for node in graph.node:
        for attribute in node.attribute:
            for subgraph in [*attribute.graphs, attribute.g]:
                _forget_recorded_shapes(subgraph)
