"""Reproduce: a folder that holds all that a failing pass was given, and reruns it.

The folder of the first failure, in fold-batchnorm:

    tilewright-repro/0001-fold-batchnorm/
      model.onnx        the graph before the pass
      run.json          pipeline from this pass on, seed, precision, target
      plan.json         the plan, where there was one
      calibration.npz   the calibration data, where there was some
      dense.onnx        the network before anything was pruned, where something was
"""

import json
import zipfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilewright.calibration import Calibration, has_batch_of_one
from tilewright.errors import UnusableInput
from tilewright.graph import Graph
from tilewright.layout import Pattern, Tile
from tilewright.plan import Plan
from tilewright.protocol import Context
from tilewright.target import LaneOrder, Target


class Reproduction(NamedTuple):
    """What `read_reproduction` returns: the arrays go to Calibration.from_arrays."""

    model: Path
    pipeline: str
    seed: int
    precision: str
    target: Target
    plan: Plan | None
    arrays: Mapping[str, np.ndarray] | None
    dense: Path | None


def write_reproduction(
    parent: Path, name: str, graph: Graph, pipeline: str, context: Context
) -> Path:
    """Write the folder under the next free number and return it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = _next_folder(parent, name)
    graph.save(folder / "model.onnx")
    run = {
        "pipeline": pipeline,
        "seed": context.seed,
        "precision": context.precision,
        "target": _target_json(context.target),
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if context.plan is not None:
        context.plan.write(folder / "plan.json")
    if context.dense is not None and context.dense is not graph:
        context.dense.save(folder / "dense.onnx")
    if context.calibration is not None:
        batched = {str(t.name) for t in graph.inputs if has_batch_of_one(t)}
        _write_stacked(folder / "calibration.npz", context.calibration, batched)
    return folder


def read_reproduction(folder: Path) -> Reproduction:
    """Read what `write_reproduction` wrote. Raises UnusableInput where that is not possible."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        target = _target(run["target"])
        pipeline, seed = str(run["pipeline"]), int(run["seed"])
        precision = str(run["precision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnusableInput(
            f'"{folder}" cannot be rerun: run.json is missing or damaged ({error!r}). '
            "Give a folder that a failing pass named."
        ) from error
    plan, data, dense = (folder / n for n in ("plan.json", "calibration.npz", "dense.onnx"))
    arrays = None
    if data.is_file():
        with np.load(data, allow_pickle=False) as stored:
            arrays = dict(stored)
    return Reproduction(
        folder / "model.onnx",
        pipeline,
        seed,
        precision,
        target,
        Plan.read(plan) if plan.is_file() else None,
        arrays,
        dense if dense.is_file() else None,
    )


def _next_folder(parent: Path, name: str) -> Path:
    taken = [p.name.partition("-")[0] for p in parent.iterdir()]
    first = 1 + max((int(number) for number in taken if number.isdigit()), default=0)
    for number in count(first):
        folder = parent / f"{number:04d}-{name}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() never ends")


def _write_stacked(file: Path, calibration: Calibration, batched: set[str]) -> None:
    """Write what Calibration.from_arrays reads, an .npz, without holding the stacks.

    Inputs in `batched` have an axis for the samples already.

    Feeds may be views of memory that many of them share: stacked, they take many times as much.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, first in next(calibration.feeds()).items():
            each = first.shape[1:] if name in batched else first.shape
            shape = (calibration.samples, *each)
            layout = np.lib.format.dtype_to_descr(first.dtype)
            header = {"descr": layout, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for feed in calibration.feeds():
                    member.write(feed[name].tobytes())


def _target_json(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "backend": target.backend,
        "about": target.about,
        "default_pipeline": target.default_pipeline,
        "orders": {
            dtype: [
                {"lanes": o.lanes, "tile": str(o.tile), "min_positions": o.min_positions}
                for o in orders
            ]
            for dtype, orders in target.orders.items()
        },
        "precisions": dict(target.precisions),
        "patterns": [str(pattern) for pattern in target.patterns],
        "settings": dict(target.settings),
    }


def _target(table: Mapping[str, Any]) -> Target:
    orders = {
        dtype: tuple(
            LaneOrder(o["lanes"], Tile.parse(o["tile"]), o["min_positions"]) for o in entries
        )
        for dtype, entries in table["orders"].items()
    }
    patterns = tuple(map(Pattern.parse, table.get("patterns", ())))
    return Target(**{**table, "orders": orders, "patterns": patterns})
