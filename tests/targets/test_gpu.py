"""Whole graphs through the gpu backend: built, run through OpenCL, against onnxruntime."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import EXACT, Within, graph_of, normal_feeds
from tests.targets.gpu_builds import (
    GPU,
    agree,
    build_in,
    built,
    gpu,
    needs_compiler,
    needs_opencl,
    with_empty_tiles,
)
from tilewright import oracle
from tilewright.errors import CannotLower, DamagedArtifact, UnusableInput
from tilewright.graph import Graph
from tilewright.layout import Tile
from tilewright.protocol import silent
from tilewright.target import LaneOrder, read_target
from tilewright.targets import FOLDER
from tilewright.targets.cuda import compile as compiling
from tilewright.targets.cuda import driver, opencl
from tilewright.targets.cuda.executor import GpuProgram
from tilewright.targets.gpu import GpuBackend

# Sums of some hundred products of unit normals, added up in another order.
SUMS = Within(rtol=1e-4, atol=1e-4)


# ---- what is computed ----


@needs_opencl
@settings(max_examples=8, deadline=None)
@given(
    channels=st.integers(1, 40),
    outputs=st.integers(1, 70),
    size=st.tuples(st.integers(5, 17), st.integers(5, 17)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    images=st.integers(1, 2),
)
def test_convolutions_of_any_size_give_onnxruntimes_answers(
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    pads: tuple[int, int, int, int],
    images: int,
) -> None:
    height, width = size
    text = f"""g (float[{images},{channels},{height},{width}] x) => (float[a,b,c,d] y) {{
        c = Conv<strides=[{stride},{stride}],dilations=[{dilation},{dilation}],
            pads={list(pads)}>(x, w, b)  y = Relu(c)
    }}"""
    graph = graph_of(text, w=normal(outputs, channels, *kernel), b=normal(outputs))
    agree(graph, normal_feeds(graph), SUMS)


@needs_opencl
@settings(max_examples=8, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    outputs=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_products_of_any_size_and_sparsity_give_onnxruntimes_answers(
    lead: list[int], rows: int, columns: int, outputs: int, share: float
) -> None:
    shape = ",".join(map(str, [*lead, rows, columns]))
    text = f"g (float[{shape}] x) => (float[{','.join('abcd'[: len(lead) + 2])}] y) " + (
        "{ a = MatMul(x, w)  y = Add(a, b) }"
    )
    weights = with_empty_tiles(normal(outputs, columns), share).T.copy()
    graph = graph_of(text, w=weights, b=normal(outputs))
    agree(graph, normal_feeds(graph), SUMS)


@needs_opencl
@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,6,24] x) => (float[1,6,40] y) { h = MatMul(x, w)  y = Relu(h) }",
        "g (float[2,3,24] x) => (float[2,3,40] y) { h = MatMul(x, w)  y = Relu(h) }",
        "g (float[1,24,1,6] x) => (float[1,40,1,6] y) { h = Conv(x, w)  y = Relu(h) }",
        "g (float[1,24,2,3] x) => (float[1,40,2,3] y) { h = Conv(x, w)  y = Relu(h) }",
    ],
)
def test_what_is_behind_a_product_of_fewer_positions_than_a_tile_is_computed(text: str) -> None:
    weights = normal(24, 40) if "MatMul" in text else normal(40, 24, 1, 1)
    graph = graph_of(text, w=weights)
    agree(graph, normal_feeds(graph), SUMS)


MODELS = {
    "a residual joins the layer before it": """
        g (float[1,24,7,9] x) => (float[1,40,7,9] y) {
            a = Conv(x, W1)  b = Conv(a, W2)  c = Add(a, b)  y = HardSwish(c) }""",
    "an activation reads its layer twice": """
        g (float[2,5,24] x) => (float[2,5,40] y) {
            a = MatMul(x, U)  s = Sigmoid(a)  y = Mul(a, s) }""",
    "a squeeze and excitation spreads a layer over its input": """
        g (float[1,40,5,6] x) => (float[1,40,5,6] y) {
            p = GlobalAveragePool(x)  a = Conv(p, W2)  h = HardSigmoid(a)  y = Mul(x, h) }""",
    "grouped and transposed convolutions": """
        g (float[1,24,7,9] x) => (float[1,24,10,14] y) {
            a = Conv<group=24,pads=[1,1,1,1]>(x, D)  b = Conv<group=4,pads=[0,0,0,0]>(a, Q)
            y = ConvTranspose<strides=[2,2]>(b, T) }""",
    "attention": """
        g (float[2,3,9,8] q, float[2,3,8,9] k, float[2,3,9,8] v) => (float[2,3,9,8] y) {
            s = MatMul(q, k)  p = Softmax<axis=-1>(s)  y = MatMul(p, v) }""",
    "a batch of matrices meets one of them": """
        g (float[2,3,9,8] q, float[1,3,8,4] k) => (float[2,3,9,4] y) { y = MatMul(q, k) }""",
    "a computed matrix meets a batch": """
        g (float[3,9,8] q, float[8,5] k) => (float[3,9,5] y) { y = MatMul(q, k) }""",
    "norms, slices and concatenations": """
        g (float[1,6,24] x) => (float[1,8,24] y) {
            a = LayerNormalization(x, S, Z)  b = Transpose<perm=[0,2,1]>(a)
            c = Transpose<perm=[0,2,1]>(b)  d = ReduceMean<axes=[1],keepdims=1>(c)
            y = Concat<axis=1>(c, d, d) }""",
    "Gemm with both orders of its weights": """
        g (float[3,24] x) => (float[3,24] y) {
            a = Gemm<alpha=0.5,beta=2.0>(x, U, V)  y = Gemm<transB=1>(a, U, Z) }""",
    "an input is an output": """
        g (float[3,4] x) => (float[3,4] x, float[3,4] y) { y = Neg(x) }""",
}
WEIGHTS = {
    "W1": normal(40, 24, 1, 1),
    "W2": normal(40, 40, 1, 1, seed=1) / 6,
    "U": normal(24, 40, seed=2) / 5,
    "V": normal(40),
    "D": normal(24, 1, 3, 3),
    "Q": normal(24, 6, 3, 3),
    "T": normal(24, 24, 2, 2) / 5,
    "S": normal(24),
    "Z": normal(24, seed=5),
}


def model_of(name: str) -> Graph:
    text = MODELS[name]
    return graph_of(
        text, 17, **{n: v for n, v in WEIGHTS.items() if re.search(rf"\b{n}\b", text)}
    )


@needs_opencl
@pytest.mark.parametrize("name", MODELS)
def test_what_stands_around_layers_gives_onnxruntimes_answers(name: str) -> None:
    graph = model_of(name)
    agree(graph, normal_feeds(graph), SUMS)


@needs_opencl
def test_integers_and_truth_values_give_onnxruntimes_answers() -> None:
    text = """g (int64[1,6] i, int64[1,6] mask) => (float[1,6,8] y, bool[1,6] s, int64[1,6] t) {
        e = Gather(table, i)  zero = Sub(mask, mask)  s = Greater(mask, zero)
        f = Cast<to=1>(mask)  u = Unsqueeze(f, axis)  y = Mul(e, u)  t = Add(mask, mask)
    }"""
    graph = graph_of(text, table=normal(10, 8), axis=np.array([2]))
    ids = np.array([[3, 9, 0, -1, 2, 2]])
    agree(graph, {"i": ids, "mask": np.array([[1, 1, 0, 1, 0, 1]])}, EXACT)


@needs_opencl
def test_a_model_at_several_sizes_runs_at_each() -> None:
    def sized(rows: int) -> str:
        return f"g (float[{rows},24] x) => (float[{rows},40] y) {{ y = MatMul(x, U) }}"

    graphs = [graph_of(sized(rows), U=WEIGHTS["U"]) for rows in (3, 17)]
    made = built(*graphs)
    for rows, graph in zip((3, 17), graphs, strict=True):
        x = normal(rows, 24)
        expected = oracle.run(graph, {"x": x})["y"]
        np.testing.assert_allclose(made.program({"x": x})["y"], expected, *SUMS)


def looked_up() -> Graph:
    """Return a model that reads its input first of all, for which the arena could reuse it."""
    text = """g (int64[1,6] i) => (float[1,6,12] y) {
        e = Gather(table, i)  h = MatMul(e, w)  y = MatMul(h, v)
    }"""
    return graph_of(text, table=normal(10, 24), w=normal(24, 40), v=normal(40, 12))


def test_no_kernel_writes_where_an_input_lies(tmp_path: Path) -> None:
    with patch("tilewright.targets.cuda.artifact.compile_cuda", return_value=None):
        build_in(tmp_path, looked_up())
    (program,) = json.loads((tmp_path / "program.json").read_text())["programs"]
    base, start, size = program["inputs"]["i"]["at"]
    places = {tuple(place) for launch in program["launches"] for place in launch["arguments"]}
    others = [(at, n) for b, at, n in places - {(base, start, size)} if b == base]
    assert len(others) >= 2
    assert all(at + n <= start or start + size <= at for at, n in others)


@needs_opencl
def test_launched_again_a_program_finds_its_inputs_as_they_were() -> None:
    program = built(looked_up()).program
    feeds = {"i": np.array([[3, 9, 0, 1, 2, 2]])}
    program(feeds)
    for _ in range(3):
        program.launch(0)
    np.testing.assert_allclose(
        program.results(0)["y"], oracle.run(looked_up(), feeds)["y"], *SUMS
    )


# So slow beside tensor cores that every product takes those.
TENSOR_CORES = gpu(device={**GPU.settings["device"], "lanes_fp32": 1})


@needs_opencl
@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,70,9,11] x) => (float[1,100,9,11] y) { c = Conv(x, w)  y = Relu(c) }",
        "g (float[2,70,9,8] x) => (float[2,100,4,3] y) { y = Conv<strides=[2,2]>(x, w) }",
        "g (float[3,50,70] x) => (float[3,50,100] y) { y = MatMul(x, w) }",
    ],
)
def test_what_tensor_cores_multiply_gives_onnxruntimes_answers(text: str, share: float) -> None:
    if "MatMul" in text:
        weights = with_empty_tiles(normal(100, 70), share).T.copy()
    else:
        side = 3 if "strides" in text else 1
        weights = with_empty_tiles(normal(100, 70 * side**2), share)
        weights = weights.reshape(100, 70, side, side)
    graph = graph_of(text, w=weights)
    (layer,) = agree(graph, normal_feeds(graph), SUMS, TENSOR_CORES).layers
    assert layer.kernel.startswith("sparse" if share else "dense")
    assert layer.kernel.endswith("on tensor cores")


# ---- what is decided and told ----


@needs_opencl
def test_a_layer_whose_tiles_are_mostly_empty_runs_in_tiles() -> None:
    weights = with_empty_tiles(normal(96, 512), 0.75)
    graph = graph_of(
        "g (float[64,512] x) => (float[64,96] y) { y = MatMul(x, w) }", w=weights.T
    )
    (layer,) = agree(graph, normal_feeds(graph), SUMS).layers
    assert (layer.tile, layer.density) == ("32x1", 0.25)
    assert layer.kernel.startswith("sparse 32x")
    # A quarter of the weights, a column for each of its tiles, and where 3 rows of tiles start.
    assert layer.stored_bytes == 4 * (96 * 128 + 3 * 128 + 4)


@needs_opencl
def test_tiles_are_as_the_target_says() -> None:
    weights = with_empty_tiles(normal(96, 512), 0.75, outputs=64)
    graph = graph_of(
        "g (float[64,512] x) => (float[64,96] y) { y = MatMul(x, w) }", w=weights.T
    )
    target = replace(gpu(), orders={"fp32": (LaneOrder("channels", Tile(64), 1),)})
    made = built(graph, target=target)
    assert made.told.layers[0].tile == "64x1"
    feeds = normal_feeds(graph)
    np.testing.assert_allclose(made.program(feeds)["y"], oracle.run(graph, feeds)["y"], *SUMS)


def test_a_tile_that_no_kernel_has_is_refused(tmp_path: Path) -> None:
    graph = graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }")
    target = replace(gpu(), orders={"fp32": (LaneOrder("channels", Tile(24), 1),)})
    with pytest.raises(UnusableInput, match=r"tiles of 24x1; .* kernels for 16x1"):
        build_in(tmp_path, graph, target=target)


@needs_compiler
def test_every_layer_is_told_and_the_estimate_names_its_model(tmp_path: Path) -> None:
    graph = model_of("grouped and transposed convolutions")
    told = build_in(tmp_path, graph)
    assert [layer.kernel for layer in told.layers] == ["TVM's schedule"] * 2
    assert all("it has groups" in layer.reason for layer in told.layers)
    estimate = GpuBackend().estimate(tmp_path, gpu(), silent)
    assert estimate.model.startswith("roofline of sm_90 at 1980 MHz")
    rows = json.loads((tmp_path / "kernels.json").read_text())
    assert sum(row["estimated_cycles"] * row["launches"] for row in rows) == pytest.approx(
        estimate.cycles,
        abs=len(rows),  # each is rounded
    )
    assert told.details["arch"] == "sm_90"
    assert {row["spilled_bytes"] for row in rows} == {0}
    assert (tmp_path / "kernels.cubin").read_bytes()[:4] == b"\x7fELF"


def test_without_a_compiler_the_source_is_kept_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_nvcc", lambda: None)
    monkeypatch.setattr(compiling, "find_nvrtc", lambda: None)
    told = build_in(tmp_path, graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }"))
    assert told.details["compiler"].startswith("no CUDA compiler")
    assert "registers" not in told.details
    assert "__global__" in (tmp_path / "kernels.cu").read_text()
    assert not (tmp_path / "kernels.cubin").exists()


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = model_of("an activation reads its layer twice")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_in(tmp_path / name, graph)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    for file in files:
        first, second = ((tmp_path / name / file).read_bytes() for name in "ab")
        assert first == second, file


# ---- what is refused ----


@needs_compiler
def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    graph = graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }")
    with pytest.raises(UnusableInput, match=r'arch "sm_999": .* does not know it'):
        build_in(tmp_path, graph, target=gpu(arch="sm_999"))


@needs_compiler
@pytest.mark.parametrize("path", sorted(FOLDER.glob("gpu*.toml")), ids=lambda path: path.stem)
def test_each_gpu_that_comes_along_is_compiled_for(tmp_path: Path, path: Path) -> None:
    target = read_target(path)
    told = build_in(tmp_path, model_of("an activation reads its layer twice"), target=target)
    assert told.details["arch"] == target.settings["arch"]
    assert told.details["spills"] == "none"
    estimate = GpuBackend().estimate(tmp_path, target, silent)
    assert f"roofline of {target.settings['arch']}" in estimate.model


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"arch": "90"}, 'arch is "90", and not like "sm_90"'),
        ({"device": {"threads": 2048}}, "no whole number for .*'multiprocessors'"),
    ],
)
def test_a_target_that_describes_no_gpu_is_refused(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    graph = graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }")
    with pytest.raises(UnusableInput, match=told):
        build_in(tmp_path, graph, target=gpu(**settings))


def test_an_open_dimension_is_refused_by_the_name_of_its_input(tmp_path: Path) -> None:
    graph = graph_of("g (float[rows,4] x) => (float[rows,4] y) { y = Neg(x) }")
    with pytest.raises(CannotLower, match=r'input "x" has shape .*rows.*--dim'):
        build_in(tmp_path, graph)


def test_an_input_without_elements_is_refused_by_its_name(tmp_path: Path) -> None:
    graph = graph_of("g (float[0,4] x) => (float[0,4] y) { y = Neg(x) }")
    with pytest.raises(CannotLower, match=r'input "x" has shape \[0, 4\]'):
        build_in(tmp_path, graph)


def test_nodes_that_tvm_cannot_import_are_named_with_the_reason(tmp_path: Path) -> None:
    graph = graph_of("g (float[2,2] x) => (float[2,2] y, float z) { y = Neg(x)  z = Det(x) }")
    with pytest.raises(CannotLower, match=r"Det Det_\d") as refused:
        build_in(tmp_path, graph)
    assert "Neg" not in str(refused.value)


@pytest.mark.parametrize("asked", ["qemu", "host"])
def test_other_devices_are_refused(asked: str) -> None:
    with pytest.raises(UnusableInput, match=f"--device {asked}: .* cuda or opencl"):
        GpuBackend().find_device(asked)


def test_without_a_driver_and_without_opencl_what_is_missing_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    monkeypatch.setattr(driver, "_LIBRARY", "libnothing.so.1")
    assert driver.cuda_missing("libnothing.so.1") == (
        "NVIDIA's driver (libnothing.so.1 cannot be loaded)"
    )
    assert "pyopencl" in str(opencl.opencl_missing())
    with pytest.raises(UnusableInput, match=r"opencl lacks .*tilewright\[gpu\]"):
        GpuBackend().find_device("opencl")


@needs_opencl
def test_inputs_that_do_not_fit_are_refused_with_what_would() -> None:
    run = built(graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }")).program
    for feeds in (
        {},
        {"z": normal(3, 4)},
        {"x": normal(4, 3)},
        {"x": normal(3, 4).astype(np.float64)},
        {"x": [[1.0]]},
    ):
        with pytest.raises(UnusableInput, match="x"):
            run(feeds)  # type: ignore[arg-type]
    with pytest.raises(UnusableInput, match="NoneType"):
        run(None)  # type: ignore[arg-type]


@needs_opencl
def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    build_in(tmp_path, graph_of("g (float[3,4] x) => (float[3,4] y) { y = Neg(x) }"))
    (tmp_path / "program.json").write_text("{")
    with pytest.raises(DamagedArtifact, match=r"program\.json"):
        GpuProgram(tmp_path, opencl.OpenClMachine)


@needs_opencl
def test_numbers_are_checked_on_a_cpu_that_takes_buffers_where_tensors_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyopencl as cl

    gpu_kind, cpu_kind = cl.device_type.GPU, cl.device_type.CPU
    one = SimpleNamespace(type=gpu_kind, mem_base_addr_align=2048)  # bits
    coarse = SimpleNamespace(type=cpu_kind, mem_base_addr_align=4096)
    fine = SimpleNamespace(type=cpu_kind, mem_base_addr_align=1024)
    found = [one, coarse, fine]
    monkeypatch.setattr(
        cl, "get_platforms", lambda: [SimpleNamespace(get_devices=lambda: found)]
    )
    assert opencl._devices() == [fine, one]
    found[:] = [coarse]
    assert "multiples of 256 bytes" in str(opencl.opencl_missing())


def test_what_runs_through_opencl_is_not_timed(tmp_path: Path) -> None:
    assert GpuBackend().timer(tmp_path, {}, 1, "opencl") is None


@needs_opencl
def test_what_picks_an_entry_that_a_table_has_not_is_refused_and_the_last_is_minus_one(
    tmp_path: Path,
) -> None:
    graph = graph_of(
        "g (int64[3] ids) => (float[3,4] y) { i = Cast <to = 6> (ids) y = Gather(table, i) }",
        table=normal(5, 4),
    )
    build_in(tmp_path, graph)
    run = GpuBackend().load(tmp_path, device="opencl")
    feeds = {"ids": np.array([-5, -1, 4])}
    np.testing.assert_array_equal(run(feeds)["y"], oracle.run(graph, feeds)["y"])
    for wrong in ([0, 1, 5], [-6, 0, 0]):
        with pytest.raises(UnusableInput, match=r"\"ids\" picks .*Give numbers from -5 to 4"):
            run({"ids": np.array(wrong)})


@needs_opencl
@pytest.mark.parametrize(
    ("text", "ids", "nearest"),
    [
        ("(int64[3] ids) => (float[3,4] y) { y = Gather(table, i) }", [9, -9, 1], [4, -5, 1]),
        (
            "(int64[1,4] ids) => (float[1,4] y) { y = GatherElements <axis = 0> (table, i) }",
            [[0, 5, -6, 4]],
            [[0, 4, -5, 4]],
        ),
        (
            "(int64[3,2] ids) => (float[3] y) { y = GatherND(table, i) }",
            [[5, 0], [0, 4], [-6, -5]],
            [[4, 0], [0, 3], [-5, -4]],
        ),
    ],
)
def test_indices_that_a_network_computes_are_the_nearest_that_there_are(
    text: str, ids: list[int], nearest: list[int], tmp_path: Path
) -> None:
    head, _, body = text.partition("{ ")
    text = f"g {head}{{ i = Add(ids, one) {body}"
    graph = graph_of(text, one=np.array(1), table=normal(5, 4))
    build_in(tmp_path, graph)
    run = GpuBackend().load(tmp_path, device="opencl")
    expected = oracle.run(graph, {"ids": np.array(nearest) - 1})["y"]
    np.testing.assert_array_equal(run({"ids": np.array(ids) - 1})["y"], expected)


def test_kernels_that_take_more_than_arrays_are_refused(tmp_path: Path) -> None:
    text = "g (int64[2,1] ids) => (float[5,4] y) { y = ScatterND(table, ids, rows) }"
    graph = graph_of(text, table=normal(5, 4), rows=normal(2, 4))
    with pytest.raises(CannotLower, match=r"cannot launch .* ScatterND"):
        build_in(tmp_path, graph)
