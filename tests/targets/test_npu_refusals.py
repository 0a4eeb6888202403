"""The edge-npu backend: what it refuses, and what is damaged or taken only in parts."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tests.targets.npu_networks import (
    U85,
    built,
    network,
    quantized,
    regions,
    vela,
)
from tilewright import oracle
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import HOST, silent
from tilewright.targets.npu import backend
from tilewright.targets.npu.commands import sparse_convolutions
from tilewright.targets.npu.partition import Step
from tilewright.targets.npu.units import Unit
from tilewright.timings import Timings, Tuning
from tilewright.tools.find_target import find_target, target_files


def test_a_model_without_integers_is_refused(tmp_path: Path) -> None:
    graph = small_graph(
        "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }", w=normal(8, 4)
    )
    with pytest.raises(CannotLower, match="the model has none among its 1 nodes"):
        built(graph, tmp_path)
    assert not list(tmp_path.iterdir())


def test_open_dimensions_are_refused(tmp_path: Path) -> None:
    graph = small_graph(
        "g (float[n,8] x) => (float[n,4] y) { y = MatMul(x, w) }", w=normal(8, 4)
    )
    with pytest.raises(CannotLower, match=r'"x" is \[\'n\', 8\]. Fix its open dimensions'):
        built(graph, tmp_path)


def test_a_model_of_nothing_that_the_device_runs_says_why(tmp_path: Path) -> None:
    text = "g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) y = Softmax(a) }"
    graph = quantized(small_graph(text, w=normal(8, 8)), normal(5, 8))
    for node in graph.nodes:
        if node.op == "QuantizeLinear":
            scale = node.inputs[1]
            node.inputs[1] = type(scale)(f"{scale.name}/nan", np.array(np.nan, np.float32))
    with pytest.raises(CannotLower, match=r"can run no operator of this model: .*is nan"):
        built(graph, tmp_path)


def test_a_bias_of_nan_stays_on_the_cpu(tmp_path: Path) -> None:
    graph = network()
    bias = graph.gs.tensors()["bias"]
    bias.values = np.full(16, np.nan, np.float32)
    notes = {n.reason for n in built(graph, tmp_path).islands}
    assert "Conv: its bias is NaN or infinite" in notes


def refuse_regions_of(
    refused: Callable[[list[Unit]], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let Vela refuse some regions, whose units alone it takes."""
    real = regions._compiled

    def compiled(graph: Graph, step: Step, device: Any) -> Any:
        if refused(step.units):
            raise vela.VelaRefused("Out of memory")
        return real(graph, step, device)

    monkeypatch.setattr(regions, "_compiled", compiled)


def test_a_region_that_vela_refuses_runs_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_regions_of(lambda units: len(units) > 3, monkeypatch)
    graph = network()
    build = built(graph, tmp_path)
    assert build.details["regions"] == "4"  # of eight units, two each
    assert build.details["macs_on_npu"] == "100.0%"
    feeds = {"x": normal(1, 3, 16, 16)}
    scales = [n.inputs[1].values for n in graph.nodes if n.name == "y/float/quantize"]
    found, expected = backend.NpuBackend().load(tmp_path)(feeds), oracle.run(graph, feeds)
    # A step that was rounded the other way inside may move an answer by a step or two.
    assert np.abs(found["y"] - expected["y"]).max() <= 2.01 * scales[0]


def test_a_unit_that_vela_takes_and_then_refuses_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_regions_of(lambda units: True, monkeypatch)
    with pytest.raises(CannotLower, match="not in its region: Out of memory"):
        built(network(), tmp_path)
    assert not [path for path in tmp_path.iterdir() if "region" in path.name]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("accelerator", "ethos-u99-256", "there are ethos-u55-32"),
        ("accelerator", "ethos-u85-300", "ethos-u85-2048"),
        ("system", "Nowhere", r'asks for "Nowhere"; Vela has Ethos_U55_Deep_Embedded'),
        ("memory", "None", r'asks for "None"; Vela has Sram_Only'),
    ],
)
def test_a_target_that_vela_does_not_know_is_refused(
    key: str, value: str, said: str, tmp_path: Path
) -> None:
    target = replace(U85, settings={**U85.settings, key: value})
    with pytest.raises(UnusableInput, match=said):
        built(network(), tmp_path, target)


def test_a_target_without_an_accelerator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="lacks the key 'accelerator'"):
        built(network(), tmp_path, replace(U85, settings={}))


def test_every_target_of_the_backend_builds(tmp_path: Path) -> None:
    names = [name for name in target_files() if name.startswith("edge-npu")]
    assert len(names) >= 4
    for name in names:
        (tmp_path / name).mkdir()
        build = built(network(), tmp_path / name, find_target(name))
        assert build.details["macs_on_npu"] == "100.0%", name
        estimate = backend.NpuBackend().estimate(tmp_path / name, find_target(name), silent)
        assert estimate.cycles > 0


def test_measuring_is_refused(tmp_path: Path) -> None:
    tuning = Tuning(4, 1.0, 1, Timings(tmp_path / "timings.sqlite"))
    with pytest.raises(UnusableInput, match="--tune measures on the device"):
        backend.NpuBackend().check(U85, HOST, tuning)
    with pytest.raises(UnusableInput, match="is not timed"):
        backend.NpuBackend().steps(network(), U85, tmp_path, {}, 1, backend.REFERENCE)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        (None, "found nothing"),
        ({"z": np.zeros(3)}, r"There is no input \['z'\]"),
        ({}, "found nothing"),
        ({"x": np.zeros((1, 3, 16, 16))}, "found float64"),
        ({"x": np.zeros((2, 3, 16, 16), np.float32)}, r"found float32 \[2, 3, 16, 16\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: Any, said: str, tmp_path: Path) -> None:
    built(network(), tmp_path)
    with pytest.raises(UnusableInput, match=said):
        backend.NpuBackend().load(tmp_path)(feeds)


def test_a_damaged_region_is_refused_and_the_process_goes_on(tmp_path: Path) -> None:
    built(network(), tmp_path)
    path = tmp_path / "region_1.tosa"
    path.write_bytes(path.read_bytes()[:100])
    run = backend.NpuBackend().load(tmp_path)
    with pytest.raises(UnusableInput, match=r"cannot run region_1.tosa"):
        run({"x": normal(1, 3, 16, 16)})


def test_a_process_without_output_runs_regions(tmp_path: Path) -> None:
    built(network(), tmp_path)
    run = backend.NpuBackend().load(tmp_path)
    feeds = {"x": normal(1, 3, 16, 16)}
    expected = run(feeds)["y"]
    kept = os.dup(1)
    os.close(1)
    try:
        found = run(feeds)["y"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    np.testing.assert_array_equal(found, expected)


def test_a_stream_that_ends_too_soon_is_read_so_far() -> None:
    convolve, wide = 0x002, 0x4000 | 0x001
    words = [b"COP1", *(word.to_bytes(4, "little") for word in (2, 0x1_0000 << 4 | 0x12E))]
    whole = b"".join(words) + convolve.to_bytes(4, "little")
    assert sparse_convolutions(whole) == 1
    assert sparse_convolutions(whole + wide.to_bytes(4, "little")) == 1
    assert sparse_convolutions(b"COP1" + (1).to_bytes(4, "little")) == 0
