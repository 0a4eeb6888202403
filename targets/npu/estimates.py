"""What Vela estimates of a compiled region: cycles and traffic, by layer and in all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def totals_of(compiled: Any) -> dict[str, Any]:
    """Return cycles, multiplications, bytes of weights, and bytes moved by memory."""
    report = compiled.perf_report
    return {
        "cycles": report.totalCycles,
        "npu_cycles": report.npuCycles,
        "macs": report.macCount,
        "weight_bytes": report.originalWeights,
        "encoded_weight_bytes": report.encodedWeights,
        "memories": {
            name: {
                "peak_bytes": memory.peakUsage,
                "read_bytes": sum(a.bytesRead for a in memory.accesses.values()),
                "written_bytes": sum(a.bytesWritten for a in memory.accesses.values()),
            }
            # Vela's own order changes from one run to the next.
            for name, memory in sorted(report.memories.items())
        },
    }


def layers_of(compiled: Any, origins: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each operator of the device, by the unit that it came from.

    `origins` names the unit of each operator of the TOSA graph, constants left out.
    """
    tables = compiled.opt_database.tables
    details = {row["id"]: row for row in _rows(tables["perf_debug"])}
    sources = [row["id"] for row in _rows(tables["source"]) if row["operator"] != "Const"]
    assert len(sources) == len(origins), f"Vela read {len(sources)} of {len(origins)} operators"
    units = dict(zip(sources, origins, strict=True))
    return [
        _layer(row, details.get(row["id"], {}), units.get(row["source_id"], ""))
        for row in _rows(tables["perf"])
    ]


def _layer(row: Mapping[str, str], detail: Mapping[str, str], unit: str) -> dict[str, Any]:
    # Sorted: the order of Vela's columns changes, too.
    waits = {
        name.removesuffix("_ac"): int(value)
        for name, value in sorted(row.items())
        if name.endswith("_ac") and value.isdigit()
    }
    traffic = {
        name: int(value)
        for name, value in sorted(detail.items())
        if name.endswith(("_read", "_write")) and value.isdigit() and int(value)
    }
    formats = detail.get("weight_format", "")
    return {
        "unit": unit,
        "operator": row["operator"],
        "cycles": int(row["op_cycles"]),
        "npu_cycles": int(row["npu_cycles"]),
        "memory_cycles": waits,
        "macs": int(row["mac_count"]),
        "encoded_weight_bytes": int(detail.get("weight_total_bytes") or 0),
        "traffic_bytes": traffic,
        "sparse": "Sparse2_4" in formats,
    }


def _rows(table: Any) -> Iterator[dict[str, str]]:
    for row in table.data:
        yield dict(zip(table.header, row, strict=True))
