from typing import Any

from tilewright.tools.write_report import summary_rows

MANIFEST: dict[str, Any] = {
    "bytes": {"dense": 4_000_000, "stored": 1_600_000},
    "parameters": {"dense": 1_000_000, "stored": 400_000, "active": 400_000},
    "latency": {
        "median_ms": 5.0,
        "threads": 2,
        "ratio": 1.6,
        "dense": {"engine": "onnxruntime", "median_ms": 8.0},
    },
    "accuracy": [{"task": "t", "metric": "exact", "n": 9, "dense": 0.9, "value": 0.85}],
}


def test_the_summary_sets_dense_beside_compiled() -> None:
    assert summary_rows(MANIFEST) == [
        ("latency, median (2 threads)", "8.00 ms (onnxruntime)", "5.00 ms", "1.60x as fast"),
        ("weights on disk", "4.00 MB", "1.60 MB", "0.40x"),
        ("weights that are not zero", "1,000,000", "400,000", "0.40x"),
        ("t, exact (n=9)", "0.9", "0.85", "-0.05"),
    ]


def test_without_a_measured_latency_there_is_no_row_for_it() -> None:
    unmeasured = {key: value for key, value in MANIFEST.items() if key != "latency"}
    assert summary_rows(unmeasured)[0][0] == "weights on disk"


def test_a_latency_of_another_device_stands_alone_and_names_it() -> None:
    board = {"median_ms": 7.0, "threads": 4, "device": "rpc://pi5:9090"}
    assert summary_rows(MANIFEST | {"latency": board})[0] == (
        "latency, median (4 threads)",
        "",
        "7.00 ms",
        "on rpc://pi5:9090",
    )


def test_a_latency_of_a_gpu_names_it_and_no_threads() -> None:
    there = {"median_ms": 0.5, "device": "NVIDIA H100 80GB HBM3"}
    assert summary_rows(MANIFEST | {"latency": there})[0] == (
        "latency, median",
        "",
        "0.50 ms",
        "on NVIDIA H100 80GB HBM3",
    )


def test_an_estimate_is_told_with_the_model_that_made_it() -> None:
    estimated = MANIFEST | {
        "latency": None,
        "estimated_cycles": {"value": 1_234_567.0, "model": "llvm-mca neoverse-n1"},
    }
    assert summary_rows(estimated)[0] == (
        "estimated cycles",
        "",
        "1,234,567",
        "model: llvm-mca neoverse-n1",
    )


def test_scores_of_what_stands_for_the_artifact_say_so() -> None:
    (score,) = MANIFEST["accuracy"]
    for of, told in (
        ("model.onnx", "t, exact (n=9) of model.onnx"),
        ("the artifact", "t, exact (n=9)"),
    ):
        assert summary_rows(MANIFEST | {"accuracy": [score | {"of": of}]})[-1][0] == told
