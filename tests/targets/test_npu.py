"""The edge-npu backend: what it writes, what runs where, what Vela says, what is refused."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.passes.quantize.static import Quantize
from tilewright.protocol import Build, Context, silent
from tilewright.target import Target
from tilewright.targets.npu import backend
from tilewright.targets.npu.commands import sparse_convolutions
from tilewright.targets.npu.estimates import layers_of
from tilewright.targets.npu.partition import Step
from tilewright.targets.npu.signed import signed
from tilewright.targets.npu.units import Unit
from tilewright.timings import Timings, Tuning
from tilewright.tools.find_target import find_target, target_files

MISSING = "the extra [npu] is not installed"
program = pytest.importorskip("tilewright.targets.npu.program", reason=MISSING)
regions = pytest.importorskip("tilewright.targets.npu.regions", reason=MISSING)
write = pytest.importorskip("tilewright.targets.npu.write", reason=MISSING)
vela = pytest.importorskip("tilewright.targets.npu.vela", reason=MISSING)
reference = pytest.importorskip("tosa_reference_model", reason=MISSING)
regor = pytest.importorskip("ethosu.regor", reason=MISSING)

U85 = find_target("edge-npu")
U55 = find_target("edge-npu-u55-128")
NETWORK = """g (float[1,3,16,16] x) => (float[1,10] y) {
    a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(x, w1) b = Relu(a)
    c = Conv<kernel_shape=[3,3], group=16, pads=[1,1,1,1]>(b, w2) d = HardSwish(c)
    e = Conv<kernel_shape=[1,1]>(d, w3, bias) f = Add(e, b)
    g = GlobalAveragePool(f) h = Flatten(g) y = Gemm<transB=1>(h, w4)
}"""
WEIGHTS = {
    "w1": normal(16, 3, 3, 3, seed=1) / 3,
    "w2": normal(16, 1, 3, 3, seed=2) / 3,
    "w3": normal(16, 16, 1, 1, seed=3) / 4,
    "bias": normal(16, seed=4),
    "w4": normal(10, 16, seed=5),
}


def quantized(graph: Graph, x: np.ndarray) -> Graph:
    calibration = Calibration.from_arrays({str(graph.inputs[0].name): x}, graph.inputs)
    return Quantize(everywhere=True)(graph, Context(DEVICE, calibration)).graph


def network(**weights: np.ndarray) -> Graph:
    return quantized(small_graph(NETWORK, **WEIGHTS | weights), normal(16, 3, 16, 16))


def built(graph: Graph, folder: Path, target: Target = U85) -> Build:
    return backend.NpuBackend().build([graph], target, folder, silent)


def estimates(folder: Path) -> Any:
    return json.loads((folder / backend.ESTIMATES).read_text())


def test_a_network_of_known_operators_is_one_region(tmp_path: Path) -> None:
    build = built(network(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cpu_0.onnx",
        "cpu_2.onnx",
        "program.json",
        "region_1.tosa",
        "region_1_vela.npz",
        "region_1_vela.tflite",
        "vela.json",
    ]
    assert build.details["macs_on_npu"] == "100.0%"
    assert {note.node: note.reason for note in build.islands} == {
        "x/quantize": "it is where floats become integers or are made of them",
        "y/float/dequantize": "it is where floats become integers or are made of them",
    }
    assert (tmp_path / "region_1_vela.tflite").read_bytes()[4:8] == b"TFL3"


def test_answers_are_those_of_onnxruntime_but_for_a_step_now_and_then(tmp_path: Path) -> None:
    graph = network()
    built(graph, tmp_path)
    run = backend.NpuBackend().load(tmp_path)
    scales = [n.inputs[1].values for n in graph.nodes if n.name == "y/float/quantize"]
    for seed in range(5):
        feeds = {"x": normal(1, 3, 16, 16, seed=seed)}
        found, expected = run(feeds)["y"], oracle.run(graph, feeds)["y"]
        # A step that was rounded the other way inside may move an answer by a step or two.
        assert np.abs(found - expected).max() <= 2.01 * scales[0]


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        built(network(), tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_what_the_reference_model_runs_is_what_vela_compiled(tmp_path: Path) -> None:
    built(network(), tmp_path)
    device = vela.Device.of(U85.settings, U85.name)
    data = (tmp_path / "region_1.tosa").read_bytes()
    stored = np.load(tmp_path / "region_1_vela.npz")
    again = vela.compile_tosa(data, device, raw=True)
    assert stored["commands"].tobytes() == bytes(again.command_stream)
    estimate = backend.NpuBackend().estimate(tmp_path, U85, silent)
    assert estimate.cycles == again.perf_report.totalCycles
    assert estimate.model == (
        "Vela 5.2.0, ethos-u85-256, Ethos_U85_SYS_Flash_High, Shared_Sram"
    )


def test_the_layers_cycles_add_up_to_those_of_the_whole(tmp_path: Path) -> None:
    build = built(network(), tmp_path)
    (region,) = estimates(tmp_path)["regions"]
    assert sum(row["cycles"] for row in region["layers"]) == region["totals"]["cycles"]
    assert sum(row["macs"] for row in region["layers"]) == region["totals"]["macs"]
    by_unit = {row["unit"]: row for row in region["layers"] if row["operator"] == "Conv2D"}
    for layer in build.layers:
        if layer.op == "Conv" and layer.shape[1] == 27:
            assert by_unit[layer.name]["macs"] == 16 * 27 * 64
            assert f"{by_unit[layer.name]['cycles']:,} cycles" in layer.reason
    assert {layer.op for layer in build.layers} == {"Conv", "Gemm"}


def test_layers_are_told_only_where_vela_counts_the_same_operators() -> None:
    device = vela.Device.of(U85.settings, U85.name)
    graph = signed(network()).sorted()
    units, _ = regions.taken_units(graph, device, silent)
    region = regions.lowered(graph, units[:1], device)
    compiled = vela.compile_tosa(region.data, device, raw=True)
    with pytest.raises(AssertionError, match="Vela read"):
        layers_of(compiled, region.origins[1:])


def test_a_layer_without_a_row_of_its_own_is_told_to_run_with_another() -> None:
    assert write._told([], sparse=False).startswith("Vela runs it together with another layer")


# ---- 2:4 ----


def test_a_stream_that_ends_too_soon_is_read_so_far() -> None:
    convolve, wide = 0x002, 0x4000 | 0x001
    words = [b"COP1", *(word.to_bytes(4, "little") for word in (2, 0x1_0000 << 4 | 0x12E))]
    whole = b"".join(words) + convolve.to_bytes(4, "little")
    assert sparse_convolutions(whole) == 1
    assert sparse_convolutions(whole + wide.to_bytes(4, "little")) == 1
    assert sparse_convolutions(b"COP1" + (1).to_bytes(4, "little")) == 0


def two_of_four(w: np.ndarray) -> np.ndarray:
    """Return weights (outputs, inputs, ...) with the smaller two of every four inputs zero."""
    groups = w.reshape(w.shape[0], -1, 4, *w.shape[2:])
    ranks = np.abs(groups).argsort(axis=2).argsort(axis=2)
    return np.where(ranks >= 2, groups, 0).reshape(w.shape).astype(w.dtype)


def sparse(w: np.ndarray, folder: Path, target: Target = U85) -> tuple[Build, int]:
    """Compile a convolution of 32 channels; count how often its commands say 2:4."""
    text = "g (float[1,32,18,18] x) => (float[1,64,16,16] y) { y = Conv(x, w) }"
    graph = quantized(small_graph(text, w=w), normal(2, 32, 18, 18))
    folder.mkdir(exist_ok=True)
    build = built(graph, folder, target)
    stored = np.load(folder / "region_1_vela.npz")
    return build, sparse_convolutions(stored["commands"].tobytes())


def test_two_of_four_inputs_switch_the_sparse_mode_on_and_take_fewer_cycles(
    tmp_path: Path,
) -> None:
    w = normal(64, 32, 3, 3)
    dense, none = sparse(w, tmp_path / "dense")
    half, some = sparse(two_of_four(w), tmp_path / "half")
    assert none == 0
    assert some > 0
    assert (dense.layers[0].tile, half.layers[0].tile) == ("1x1", "2:4")
    assert (dense.layers[0].density, half.layers[0].density) == (1.0, 0.5)
    assert half.details["convolutions_in_2_4_mode"] == str(some)
    busy = [
        estimates(tmp_path / name)["regions"][0]["totals"]["npu_cycles"]
        for name in ("dense", "half")
    ]
    assert busy[1] < 0.7 * busy[0]


def test_one_weight_too_many_makes_a_layer_dense(tmp_path: Path) -> None:
    w = two_of_four(normal(64, 32, 3, 3))
    w[5, 8:12, 1, 1] = 1
    build, count = sparse(w, tmp_path)
    assert count == 0
    assert build.layers[0].density == 1.0


def test_a_device_without_the_mode_never_claims_it(tmp_path: Path) -> None:
    build, count = sparse(two_of_four(normal(64, 32, 3, 3)), tmp_path, U55)
    assert count == 0
    assert build.layers[0].tile == "1x1"


# ---- what stays on the CPU ----


def test_what_the_device_lacks_runs_between_regions_and_is_named(tmp_path: Path) -> None:
    graph = small_graph(
        """g (float[1,4,8] x) => (float[1,4,8] y) {
            a = MatMul(x, u) n = LayerNormalization(a, ones, zeros) b = MatMul(n, w)
            y = Add(b, a)
        }""",
        u=normal(8, 8),
        w=normal(8, 8, seed=1),
        ones=np.ones(8, np.float32),
        zeros=np.zeros(8, np.float32),
    )
    x = normal(8, 4, 8)
    graph = quantized(graph, x)
    build = built(graph, tmp_path)
    assert build.details["regions"] == "2"
    reasons = {note.node: note.reason for note in build.islands}
    (norm,) = [n.name for n in graph.nodes if n.op == "LayerNormalization"]
    assert reasons[norm] == "LayerNormalization: there is no rule for LayerNormalization"
    feeds = {"x": x[:1]}
    found = backend.NpuBackend().load(tmp_path)(feeds)["y"]
    expected = oracle.run(graph, feeds)["y"]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_nothing_waits_for_a_later_step(tmp_path: Path) -> None:
    # b needs the CPU's Log between two layers; c does not, but its sum with b does.
    graph = small_graph(
        """g (float[1,8] x) => (float[1,8] y) {
            a = MatMul(x, u) p = Exp(a) l = Log(p) b = MatMul(l, w) c = MatMul(a, v)
            y = Add(b, c)
        }""",
        u=normal(8, 8) / 9,
        w=normal(8, 8, seed=1),
        v=normal(8, 8, seed=2),
    )
    x = normal(8, 8)
    graph = quantized(graph, x)
    build = built(graph, tmp_path)
    assert build.details["regions"] == "2"
    feeds = {"x": x[:1]}
    found = backend.NpuBackend().load(tmp_path)(feeds)["y"]
    np.testing.assert_allclose(found, oracle.run(graph, feeds)["y"], atol=0.3)


def test_a_result_that_others_read_in_floats_comes_out_of_the_region_as_well(
    tmp_path: Path,
) -> None:
    text = "g (float[1,8] x) => (float[1,8] a, float[1,8] y) { a = MatMul(x, u) y = Tanh(a) }"
    graph = quantized(small_graph(text, u=normal(8, 8)), normal(8, 8))
    built(graph, tmp_path)
    feeds = {"x": normal(1, 8)}
    found, expected = backend.NpuBackend().load(tmp_path)(feeds), oracle.run(graph, feeds)
    for name in ("a", "y"):
        np.testing.assert_allclose(found[name], expected[name], atol=0.1)


def test_batches_run(tmp_path: Path) -> None:
    text = "g (float[3,8,6,6] x) => (float[3,4,6,6] y) { y = Conv<kernel_shape=[1,1]>(x, w) }"
    graph = small_graph(text, w=normal(4, 8, 1, 1))
    x = normal(2, 3, 8, 6, 6)
    graph = quantized(graph, x)
    build = built(graph, tmp_path)
    assert build.details["macs_on_npu"] == "100.0%"
    feeds = {"x": x[0]}
    found, expected = backend.NpuBackend().load(tmp_path)(feeds)["y"], oracle.run(graph, feeds)
    np.testing.assert_allclose(found, expected["y"], atol=0.1)


def test_a_model_at_two_sizes_runs_at_both(tmp_path: Path) -> None:
    text = "g (float[{0},8] x) => (float[{0},4] y) {{ y = MatMul(x, w) }}"
    graphs = [
        quantized(small_graph(text.format(n), w=normal(8, 4)), normal(9, n, 8)) for n in (4, 2)
    ]
    backend.NpuBackend().build(graphs, U85, tmp_path, silent)
    run = backend.NpuBackend().load(tmp_path)
    for graph, n in zip(graphs, (4, 2), strict=True):
        feeds = {"x": normal(n, 8)}
        np.testing.assert_allclose(run(feeds)["y"], oracle.run(graph, feeds)["y"], atol=0.1)


# ---- refusals ----


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
        backend.NpuBackend().build([network()], U85, tmp_path, silent, tuning)
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
