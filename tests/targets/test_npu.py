"""The edge-npu backend: what it writes, what runs where, what Vela says."""

from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tests.targets.npu_networks import (
    U55,
    U85,
    built,
    estimates,
    network,
    quantized,
    regions,
    vela,
    write,
)
from tilewright import oracle
from tilewright.protocol import Build, silent
from tilewright.target import Target
from tilewright.targets.npu import backend
from tilewright.targets.npu.commands import sparse_convolutions
from tilewright.targets.npu.estimates import layers_of
from tilewright.targets.npu.signed import signed


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
