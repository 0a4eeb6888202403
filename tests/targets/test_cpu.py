"""Whole graphs through the cpu backend: built, loaded and run, against onnxruntime."""

import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.small_models import normal, small_model
from tests.targets.builds import (
    EXACT,
    NEAR,
    Within,
    agree,
    build,
    built,
    cpu,
    every_isa,
    graph_of,
    islands,
    normal_feeds,
)
from tilewright import oracle
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import Executable
from tilewright.targets import cpu as backend
from tilewright.targets.cpu import CpuBackend
from tilewright.targets.cpu_program import STORAGE
from tilewright.targets.link import Toolchain

# Sums of up to 300 products of unit normals, added up in another order.
SUMS = Within(rtol=1e-4, atol=1e-4)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# ---- operators ----


@every_isa
def test_convolutions_of_all_kinds(isa: str) -> None:
    graph = graph_of(
        "g (float[2,6,9,11] x, float[2,6,23] s) => (float[a,b,c,d] dense, float[e,f,h,i] deep,"
        " float[j,k,l,m] grouped, float[n,o,p] line, float[q,r,t] thin, float[u,v,y,z] point)"
        " { dense = Conv <pads = [1, 1, 1, 1], strides = [2, 1]> (x, w, b)"
        " deep = Conv <group = 6, pads = [0, 1, 2, 3]> (x, wd)"
        " grouped = Conv <group = 2> (x, wg) line = Conv <dilations = [2]> (s, wl)"
        " thin = Conv <group = 6, pads = [2, 0]> (s, wt)"
        " point = Conv <strides = [2, 2]> (x, wp) }",
        w=normal(7, 6, 3, 3),
        b=normal(7),
        wd=normal(6, 1, 3, 3),
        wg=normal(4, 3, 2, 2),
        wl=normal(5, 6, 3),
        wt=normal(6, 1, 3),
        wp=normal(5, 6, 1, 1),
    )
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert islands(made) == ["Conv_2"]  # the grouped one


@every_isa
def test_transposed_convolutions_of_all_strides(isa: str) -> None:
    attributes = (
        "strides = [1, 1], pads = [1, 0, 1, 2]",
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        "strides = [3, 2], pads = [0, 1, 2, 0]",
        "strides = [2, 3]",
        "strides = [2, 2], group = 2",
    )
    body = " ".join(
        f"y{i} = ConvTranspose <{text}> (x, {'v' if 'group' in text else 'w'}, b)"
        for i, text in enumerate(attributes)
    )
    outputs = ", ".join(f"float[a{i},b{i},c{i},d{i}] y{i}" for i in range(5))
    graph = graph_of(
        f"g (float[2,4,5,6] x) => ({outputs}) {{ {body} }}",
        w=normal(4, 6, 3, 4),
        v=normal(4, 3, 3, 4),
        b=normal(6),
    )
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert islands(made) == ["ConvTranspose_4"]


@every_isa
def test_gemm_with_every_attribute(isa: str) -> None:
    graph = graph_of(
        "g (float[5,7] x, float[7,5] t) => (float[5,6] p, float[5,6] q, float[5,6] r,"
        " float[5,6] s, float[5,6] u)"
        " { p = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) q = Gemm <transB = 1> (x, wt, m)"
        " r = Gemm <transA = 1> (t, w, b) s = Gemm (x, w) u = Gemm (x, w, col) }",
        w=normal(7, 6),
        wt=normal(6, 7),
        b=normal(6),
        m=normal(5, 6),
        col=normal(5, 1),
    )
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert islands(made) == ["Gemm_2"]  # transA


def test_an_artifact_for_cpu_runs_on_this_machine_alone() -> None:
    assert CpuBackend().find_device(None) == "host"
    with pytest.raises(UnusableInput, match=r'--device qemu: .* run on "host"'):
        CpuBackend().find_device("qemu")


def test_batch_normalization_left_as_it_is() -> None:
    graph = graph_of(
        "g (float[2,5,6,7] x) => (float[2,5,6,7] y)"
        " { a = BatchNormalization(x, s, b, m, v) y = Relu(a) }",
        s=normal(5),
        b=normal(5),
        m=normal(5),
        v=np.abs(normal(5)) + 0.5,
    )
    agree(graph, normal_feeds(graph))


@every_isa
def test_shape_operators_move_nothing_and_mean_the_same(isa: str) -> None:
    graph = graph_of(
        "g (float[4,6,10] x) => (float[10,6,4] a, float[4,3,4] b, float[4,2,10] c,"
        " float[4,4,10] d, float[3,4,6,10] e, float[24,10] f, float[4,6,10] h, float[4,3,10] i,"
        " float[4,6,2,5] j)"
        " { a = Transpose(x) b = Slice(x, starts, ends, axes, steps)"
        " c, d = Split <axis = 1> (x, parts) u = Unsqueeze(x, zero) e = Expand(u, wide)"
        " f = Flatten <axis = 2> (x) h = Identity(x) k = Transpose <perm = [0, 2, 1]> (x)"
        " l = Reshape(k, flat) n = Reshape(l, back) o = Transpose <perm = [0, 2, 1]> (n)"
        " i = Slice(o, first, last, one) j = Reshape(x, halves) }",
        starts=ids(-1, 100),
        ends=ids(-7, -1000),
        axes=ids(1, 2),
        steps=ids(-2, -3),
        parts=ids(2, 4),
        zero=ids(0),
        wide=ids(3, 1, 1, 1),
        flat=ids(4, 60),
        back=ids(4, 10, 6),
        first=ids(1),
        last=ids(4),
        one=ids(1),
        halves=ids(0, 0, 2, -1),
    )
    made = agree(graph, normal_feeds(graph), isa, within=EXACT)
    assert islands(made) == []


@every_isa
def test_concat_of_views_constants_and_computed_tensors(isa: str) -> None:
    graph = graph_of(
        "g (float[3,4,5] x, int64[2,3] n) => (float[3,4,15] y, int64[4,3] m, float[3,13,5] z)"
        " { t = Transpose <perm = [0, 2, 1]> (x) r = Reshape(t, shape) a = Relu(x)"
        " y = Concat <axis = -1> (x, a, r) m = Concat <axis = 0> (n, n)"
        " z = Concat <axis = 1> (a, c, x) }",
        shape=ids(3, 4, 5),
        c=normal(3, 5, 5),
    )
    feeds = {"x": normal(3, 4, 5), "n": np.arange(6).reshape(2, 3)}
    assert islands(agree(graph, feeds, isa, within=EXACT)) == []


@every_isa
def test_padding_by_constants_and_by_reflection(isa: str) -> None:
    graph = graph_of(
        "g (float[2,3,5] x, int64[4] n) => (float[2,6,8] y, int64[7] m, float[2,3,9] r,"
        " float[2,3,3] c)"
        ' { y = Pad(x, around, value) m = Pad(n, three) r = Pad <mode = "reflect"> (x, two)'
        " c = Pad(x, less) }",
        around=ids(0, 1, 2, 0, 2, 1),
        value=np.array(-7.5, np.float32),
        three=ids(1, 2),
        two=ids(0, 0, 2, 0, 0, 2),
        less=ids(0, 0, -1, 0, 0, -1),
    )
    feeds = {"x": normal(2, 3, 5), "n": ids(1, 2, 3, 2**40 + 1)}
    made = agree(graph, feeds, isa, within=EXACT)
    assert islands(made) == ["Pad_2", "Pad_3"]


@every_isa
def test_broadcast_operands_of_every_shape(isa: str) -> None:
    graph = graph_of(
        "g (float[2,3,17] x, float[3,1] c, float[17] r, float s, float[2,1,1] b)"
        " => (float[2,3,17] y, float[2,3,17] z)"
        " { p = Add(x, c) q = Mul(p, r) t = Sub(s, q) y = Div(t, b)"
        " u = PRelu(x, slope) v = Max(u, r, c) z = Pow(v, two) }",
        slope=normal(3, 1),
        two=np.array([2.0], np.float32),
    )
    agree(graph, normal_feeds(graph), isa)


def test_powers_that_differ_by_place_run_in_onnxruntime() -> None:
    graph = graph_of(
        "g (float[3] x) => (float[3] y, float[3] z) { y = Pow(x, e) z = Pow(x, third) }",
        e=np.array([1.0, 2.0, 0.5], np.float32),
        third=np.array(1 / 3, np.float32),
    )
    made = agree(graph, {"x": np.array([1.0, 2.0, 3.0], np.float32)})
    assert len(made.islands) == 2


def test_activations_spelled_out_in_pieces_are_one_kernel() -> None:
    graph = graph_of(
        "g (float[1,9,8] x) => (float[1,9,8] y) { a = MatMul(x, w) c = Add(a, b)"
        " d = Div(c, root) e = Erf(d) f = Add(e, one) g = Mul(c, f) h = Mul(g, half)"
        " s = Sigmoid(h) t = Mul(h, s) y = Add(t, x) }",
        w=normal(8, 8),
        b=normal(8),
        root=np.array(2**0.5, np.float32),
        one=np.array(1.0, np.float32),
        half=np.array(0.5, np.float32),
    )
    made = agree(graph, normal_feeds(graph), within=SUMS)
    assert made.details["calls"] == "1"


# ---- graphs of odd forms ----


def test_outputs_that_are_read_inside_are_inputs_or_are_constants() -> None:
    graph = graph_of(
        "g (float[2,5] x) => (float[2,5] a, float[2,5] y, float[2,5] same, float[5,2] t,"
        " float[2,5] again, float[3] k)"
        " { a = Relu(x) y = Tanh(a) same = Identity(x) t = Transpose(x) again = Identity(a)"
        " k = Identity(w) }",
        w=normal(3),
    )
    agree(graph, normal_feeds(graph))


def test_an_identity_in_front_takes_nothing_from_what_follows() -> None:
    graph = graph_of(
        "g (float[2,5] x) => (float[2,5] y, float[2,5] z, float[2,5] w)"
        " { a = Identity(x) y = Relu(a) z = Neg(a) w = Identity(a) }"
    )
    agree(graph, normal_feeds(graph))


def test_a_graph_without_kernels_gives_its_inputs_back() -> None:
    graph = graph_of("g (float[2,5] x) => (float[5,2] y) { y = Transpose(x) }")
    made = agree(graph, normal_feeds(graph), within=EXACT)
    assert made.details["calls"] == "0"


def test_outputs_are_copies_that_the_next_run_leaves_alone() -> None:
    graph = graph_of(
        "g (float[3] x) => (float[3] y, float[3] z) { y = Neg(x) z = Identity(x) }"
    )
    run, _ = built(graph)
    first = run({"x": np.ones(3, np.float32)})
    run({"x": np.zeros(3, np.float32)})
    assert first["y"].tolist() == [-1.0] * 3
    assert first["z"].tolist() == [1.0] * 3


def test_memory_of_outputs_is_used_again_once_nothing_refers_to_it() -> None:
    run, _ = built(graph_of("g (float[300] x) => (float[300] y) { y = Neg(x) }"))
    held = run({"x": np.ones(300, np.float32)})["y"][10:20]
    let_go = run({"x": np.zeros(300, np.float32)})["y"].ctypes.data
    answer = run({"x": np.zeros(300, np.float32)})["y"]
    assert answer.ctypes.data == let_go
    assert held.tolist() == [-1.0] * 10


@every_isa
def test_scalars_and_tensors_of_one_element(isa: str) -> None:
    graph = graph_of(
        "g (float x, float[1] o, float[1,1,1] t)"
        " => (float a, float[1] b, float c, float[1,1] d, float[1,1,1] e)"
        " { a = Exp(x) b = Add(x, o) c = ReduceSum <keepdims = 0> (t) m = Squeeze(t, zero)"
        " d = MatMul(m, w) e = Softmax(t) }",
        zero=ids(0),
        w=normal(1, 1),
    )
    agree(graph, normal_feeds(graph), isa)


def test_empty_tensors_agree() -> None:
    graph = graph_of(
        "g (float[2,0,3] x, float[2,4,3] z) => (float[2,0,3] y, float[2,4,3] c, float[2,3] s,"
        " float[2,0] t)"
        " { y = Relu(x) n = Neg(x) c = Concat <axis = 1> (n, z)"
        " s = ReduceSum <keepdims = 0> (x, one) t = ReduceSum <keepdims = 0> (y, two) }",
        one=ids(1),
        two=ids(2),
    )
    agree(graph, normal_feeds(graph))


def test_a_graph_of_whole_numbers_only() -> None:
    graph = graph_of(
        "g (int64[2,6] x)"
        " => (int64[2,6] y, int64[6,2] t, bool[2,6] m, int64[2] s, int64[2,3] g)"
        " { a = Mul(x, three) b = Sub(a, x) m = Greater(b, three) y = Where(m, b, x)"
        " t = Transpose(y) s = ReduceSum <keepdims = 0> (y, one) g = Slice(y, at, to, one) }",
        three=np.array(3),
        one=ids(1),
        at=ids(0),
        to=ids(3),
    )
    agree(graph, {"x": np.arange(12).reshape(2, 6) - 4}, within=EXACT)


def test_a_mask_of_ints_becomes_the_bias_of_a_softmax() -> None:
    graph = graph_of(
        "g (int64[1,9] mask, float[1,2,9,9] scores) => (float[1,2,9,9] y)"
        " { m = Unsqueeze(mask, axes) f = Cast <to = 1> (m) i = Sub(one, f) b = Mul(i, low)"
        " s = Add(scores, b) y = Softmax(s) }",
        axes=ids(1, 2),
        one=np.array(1.0, np.float32),
        low=np.array(-10000.0, np.float32),
    )
    made = agree(graph, {"mask": np.array([[1] * 6 + [0] * 3]), "scores": normal(1, 2, 9, 9)})
    assert islands(made) == []


def test_half_precision_runs_in_onnxruntime() -> None:
    graph = graph_of(
        "g (float16[3,4] x) => (float16[3,4] y, float[3,4] z)"
        " { y = Relu(x) f = Cast <to = 1> (x) z = Tanh(f) }"
    )
    made = agree(graph, {"x": normal(3, 4).astype(np.float16)})
    assert islands(made) == ["Relu_0", "Cast_1"]
    assert "float16" in made.islands[0].reason


def test_branches_read_tensors_from_outside_and_run_in_onnxruntime() -> None:
    graph = graph_of(
        "g (bool go, float[2,3] x) => (float[2,3] y) { a = Relu(x)"
        " b = If (go) <then_branch = t () => (float[2,3] p) { n = Neg(a) p = Mul(n, w) },"
        " else_branch = e () => (float[2,3] q) { q = Add(a, x) }>"
        " y = Add(b, a) }",
        w=normal(2, 3),
    )
    for go in (True, False):
        made = agree(graph, {"go": np.array(go), "x": normal(2, 3)})
        assert islands(made) == ["If_1"]


def test_a_recurrent_layer_runs_in_onnxruntime() -> None:
    graph = graph_of(
        "g (float[7,2,4] x) => (float[7,1,2,3] y, float[1,2,3] h, float[7,2,3] z)"
        " { y, h = LSTM <hidden_size = 3> (x, w, r) s = Squeeze(y, one) z = Tanh(s) }",
        w=normal(1, 12, 4),
        r=normal(1, 12, 3),
        one=ids(1),
    )
    made = agree(graph, normal_feeds(graph))
    assert islands(made) == ["LSTM_0"]


def test_operators_without_a_kernel_run_in_onnxruntime_in_their_place() -> None:
    graph = graph_of(
        "g (float[3,4] x) => (float[3,4] y, float[3,4] k)"
        " { a = Relu(x) b = Sin(a) c = Add(b, a) y = CumSum(c, axis)"
        " k = Mod <fmod = 1> (c, x) }",
        axis=np.array(1),
    )
    made = agree(graph, normal_feeds(graph))
    assert islands(made) == ["Sin_1", "CumSum_3", "Mod_4"]
    assert made.islands[0].reason == "runs in onnxruntime: Sin has no kernel"


def test_an_anchor_that_is_refused_leaves_what_follows_to_the_kernels() -> None:
    graph = graph_of(
        "g (float[1,4,6,6] x) => (float[a,b,c,d] y)"
        " { c = Conv <group = 2> (x, w) e = Relu(c) y = Mul(e, e) }",
        w=normal(4, 2, 3, 3),
    )
    made = agree(graph, normal_feeds(graph), within=SUMS)
    assert islands(made) == ["Conv_0"]
    assert made.details["calls"] == "2"


def test_nodes_may_be_stored_in_any_order() -> None:
    model = small_model(
        "g (float[1,6] x) => (float[1,6] y) { a = Relu(x) b = MatMul(a, w) y = Add(b, a) }",
        w=normal(6, 6),
    )
    graph = Graph.from_onnx(model).infer_shapes()
    graph.gs.nodes.reverse()
    feeds = {"x": normal(1, 6)}
    expected = oracle.run(model, feeds)["y"]
    np.testing.assert_allclose(built(graph)[0](feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_value_in_strings_or_of_unknown_shape_cannot_be_lowered(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[4] x) => (int64[1,n] y) { y = NonZero(x) }",
    )
    with pytest.raises(CannotLower, match=r"NonZero_0.*known only at run time"):
        build(graph, tmp_path)
    strings = graph_of("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    with pytest.raises(CannotLower, match='"x" is'):
        build(strings, tmp_path)


# ---- the artifact ----

SMALL = """g (float[1,40,12] x) => (float[1,40,10] y) {
    a = MatMul(x, w)  r = Relu(a)  t = MatMul(r, v)  y = Softmax(t)
}"""


def small() -> Graph:
    w = normal(12, 20)
    w[:, ::3] = 0.0
    w[::2] = 0.0
    return graph_of(SMALL, w=w, v=normal(20, 10))


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        build(small(), folder)
    for name in ("weights.bin", "indices.bin.z", "constants.bin", "program.json"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second, name


def test_what_is_stored_is_what_the_folder_holds(tmp_path: Path) -> None:
    made = build(small(), tmp_path)
    held = {p.name: p.stat().st_size for p in tmp_path.iterdir()}
    assert made.stored_bytes == sum(held.values()) - held["program.json"]
    (program,) = json.loads((tmp_path / "program.json").read_text())["programs"]
    assert program["inputs"]["x"]["shape"] == [1, 40, 12]


def test_weights_of_nodes_that_onnxruntime_runs_are_stored_too(tmp_path: Path) -> None:
    text = """g (bool go, float[8,8] x) => (float[8,8] y) { y = If (go) <
        then_branch = t () => (float[8,8] p) { p = MatMul(x, w) },
        else_branch = e () => (float[8,8] q) { q = Neg(x) }> }"""
    made = build(graph_of(text, w=normal(8, 8)), tmp_path)
    assert made.stored_bytes >= (tmp_path / "island_0.onnx").stat().st_size > 8 * 8 * 4


@pytest.mark.parametrize("feeds", [None, np.zeros(3)])
def test_feeds_without_names_are_refused_with_the_names(tmp_path: Path, feeds: Any) -> None:
    build(small(), tmp_path)
    with pytest.raises(UnusableInput, match=r"dict that has the keys \['x'\]"):
        CpuBackend().load(tmp_path)(feeds)


def test_one_thread_and_two_give_identical_outputs() -> None:
    graph = graph_of(
        "g (float[1,16,40,40] x) => (float[1,32,40,40] y)"
        " { a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu(a) s = Softmax <axis = 1> (r)"
        " d = Conv <group = 32, pads = [1, 1, 1, 1]> (s, v) y = Add(d, r) }",
        w=normal(32, 16, 3, 3),
        v=normal(32, 1, 3, 3),
    )
    feeds = normal_feeds(graph)
    one, two = (built(graph, threads=n)[0](feeds)["y"] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": normal(1, 40, 11)}, r'Input "x" must be float32 \[1, 40, 12\]; found float32'),
        ({"x": normal(1, 40, 12).astype(np.float64)}, "found float64"),
        ({}, "found nothing"),
        ({"x": normal(1, 40, 12), "z": normal(1)}, r"no input \['z'\].*takes \['x'\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, np.ndarray], message: str) -> None:
    run, _ = built(small())
    with pytest.raises(UnusableInput, match=message):
        run(feeds)


def test_an_instruction_set_that_is_not_described_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r'asks for isa "sse2".*avx2.*avx512'):
        build(small(), tmp_path, cpu("sse2"))


# ---- linking ----


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_without_a_compiler_zig_links(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, loader=None))
    commands: list[list[str]] = []

    def noted(command: list[str], **_: object) -> object:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", noted)
    Toolchain().link_shared("lib.so", ["a.o"])
    assert commands[0][1:] == ["-m", "ziglang", "cc", "-o", "lib.so", "-shared", "-fPIC", "a.o"]


def test_without_any_linker_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_compiler(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnusableInput, match=r"apt-get install gcc.*tilewright\[zig\]"):
        Toolchain().link_shared("lib.so", ["a.o"])


def test_the_linker_has_nothing_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[str] = []

    def noted(output: str, objects: Sequence[str], options: object) -> None:
        files.extend(objects)
        Toolchain().link_shared(output, objects)

    monkeypatch.setattr(backend, "STORAGE", STORAGE._replace(link=noted))
    build(small(), tmp_path)
    assert {Path(file).suffix for file in files} == {".o"}


def test_what_the_linker_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"Linking .* failed: .*no\.o"):
        Toolchain().link_shared(str(tmp_path / "lib.so"), [str(tmp_path / "no.o")])


def test_islands_are_valid_models_of_one_node(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[3,4] x) => (float[3,4] y) { a = Sin(x) y = Relu(a) }",
    )
    build(graph, tmp_path)
    model = onnx.load(tmp_path / "island_0.onnx")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Sin"]
    run = CpuBackend().load(tmp_path, 1)
    np.testing.assert_allclose(run({"x": np.zeros((3, 4), np.float32)})["y"], 0.0)


def test_dropout_passes_its_input_on_but_for_its_mask() -> None:
    graph = graph_of(
        "g (float[2,6] x) => (float[2,6] y, float[2,6] z, bool[2,6] m)"
        " { y = Dropout(x, , no) z, m = Dropout(x) }",
        no=np.array(False),
    )
    assert len(islands(agree(graph, normal_feeds(graph), within=EXACT))) == 1


@pytest.mark.parametrize(
    ("start", "end", "step", "count"),
    [(-9, -99, -1, 1), (9, -7, -1, 6), (5, 0, -2, 3), (-1, -6, -1, 5), (-9, 99, 4, 2)],
)
def test_slices_that_start_or_end_outside_mean_what_onnx_says(
    start: int, end: int, step: int, count: int
) -> None:
    graph = graph_of(
        f"g (float[6] x) => (float[{count}] y) {{ y = Slice(x, s, e, a, p) }}",
        s=np.array([start]),
        e=np.array([end]),
        a=np.array([0]),
        p=np.array([step]),
    )
    assert islands(agree(graph, normal_feeds(graph), within=EXACT)) == []


def test_a_transposed_convolution_to_a_given_shape_agrees() -> None:
    graph = graph_of(
        "g (float[1,2,4,4] x) => (float[1,3,7,7] y)"
        " { y = ConvTranspose <strides = [2, 2], output_shape = [7, 7]> (x, w) }",
        w=normal(2, 3, 3, 3),
    )
    agree(graph, normal_feeds(graph))


def test_each_artifact_runs_on_the_threads_it_was_loaded_for() -> None:
    # Enough work that each of the threads gets some.
    graph = graph_of(
        "g (float[1,64,56,56] x) => (float[1,256,54,54] y) { y = Conv(x, w) }",
        w=normal(256, 64, 3, 3),
    )
    feeds = normal_feeds(graph)
    one, two = (built(graph, threads=n)[0] for n in (1, 2))
    one(feeds)

    def busy(executable: Executable) -> int:
        before = _ticks_at_rest()
        for _ in range(30):
            executable(feeds)
        spent = [ticks - before.get(thread, 0) for thread, ticks in _ticks().items()]
        return sum(ticks > 0.35 * sum(spent) for ticks in spent)

    assert busy(one) == 1
    # Pieces go to whoever is free: while others use its core, too, a thread gets fewer.
    assert any(busy(two) == 2 for _ in range(20))
    assert busy(one) == 1


def _ticks_at_rest() -> dict[str, int]:
    """Wait until no thread is busy: a worker that has nothing to do stays awake for a while."""
    before, now = None, _ticks()
    while now != before:
        time.sleep(0.2)
        before, now = now, _ticks()
    return now


def _ticks() -> dict[str, int]:
    """Return the processor time of each thread of this process, in hundredths of a second."""
    spent = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        spent[task.name] = int(fields[11]) + int(fields[12])
    return spent


def test_an_artifact_in_the_place_of_another_is_loaded_itself(tmp_path: Path) -> None:
    feeds = {"x": normal(3, 32)}
    loaded = []
    for index, op in enumerate(("Relu", "Sigmoid", "Neg")):
        graph = graph_of(
            f"g (float[3,32] x) => (float[3,8] y) {{ m = MatMul(x, w) y = {op}(m) }}",
            w=normal(32, 8, seed=index),
        )
        (tmp_path / "next").mkdir()
        build(graph, tmp_path / "next")
        # As compile does: the new folder takes the old one's name.
        shutil.rmtree(tmp_path / "m.tw", ignore_errors=True)
        (tmp_path / "next").rename(tmp_path / "m.tw")
        loaded.append((CpuBackend().load(tmp_path / "m.tw", 1), oracle.run(graph, feeds)["y"]))
    for executable, expected in loaded:
        np.testing.assert_allclose(executable(feeds)["y"], expected, *NEAR)


def test_threads_may_call_one_executable_at_the_same_time() -> None:
    graph = graph_of(
        "g (float[4,64] x) => (float[4,64] y) { m = MatMul(x, w) y = Sigmoid(m) }",
        w=normal(64, 64),
    )
    executable, _ = built(graph)
    samples = [{"x": normal(4, 64, seed=i)} for i in range(40)]
    expected = [oracle.run(graph, feeds)["y"] for feeds in samples]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(executable, samples * 5))
    for y, values in zip(found, expected * 5, strict=True):
        np.testing.assert_allclose(y["y"], values, *NEAR)


def test_ids_beyond_the_table_are_refused() -> None:
    graph = graph_of(
        "g (int64[2] ids, int32[2] more, uint8[2] small, float[2] wide) =>"
        " (float[2,4] y, float[1,2,4] z, float[2,4] s, float[2,4] v) {"
        " y = Gather(table, ids) m = Unsqueeze(more, zero) c = Cast <to = 7> (m)"
        " z = Gather(table, c) t = Cast <to = 7> (small) s = Gather(table, t)"
        " w = Cast <to = 6> (wide) v = Gather(table, w) }",
        table=normal(5, 4),
        zero=np.array([0]),
    )
    executable, _ = built(graph)
    fine = {
        "ids": np.array([-5, 4]),
        "more": np.array([0, 1], np.int32),
        "small": np.array([4, 0], np.uint8),
        "wide": np.array([4.9, -5.9], np.float32),  # which are 4 and -5
    }
    executable(fine)
    for bad in (
        {"ids": np.array([0, 5])},
        {"more": np.array([-6, 0], np.int32)},
        {"small": np.array([2, 77], np.uint8)},
        {"wide": np.array([5, 0], np.float32)},
        {"wide": np.array([np.nan, 0], np.float32)},
    ):
        with pytest.raises(UnusableInput, match="picks entries of a table that has 5"):
            executable({**fine, **bad})


def test_a_small_output_that_is_kept_keeps_no_large_one() -> None:
    run, _ = built(
        graph_of(
            "g (float[9000] x) => (float[9000] y, float s) {"
            " y = Neg(x) s = ReduceSum <keepdims = 0> (x) }"
        )
    )
    found = run({"x": np.ones(9000, np.float32)})
    assert found["s"].base is not None
    assert found["s"].base.nbytes == 4
