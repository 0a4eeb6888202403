"""Graphs through the arm-edge backend, cross-compiled and run in QEMU, against onnxruntime."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tests.targets.boards import (
    A72,
    A76,
    TRIPLE,
    built,
    emulated,
    emulators,
    every_target,
    modelled,
)
from tests.targets.builds import graph_of
from tilewright import oracle
from tilewright.errors import CannotLower, UnusableInput
from tilewright.graph import Graph
from tilewright.protocol import silent
from tilewright.target import Target
from tilewright.targets import arm
from tilewright.targets.arm import ArmBackend
from tilewright.targets.board.estimate import (
    Core,
    block_cycles,
    count_inference,
    disassemble,
    placeless,
)
from tilewright.targets.board.held import HeldBoard
from tilewright.targets.board.loaded import tools_for
from tilewright.targets.link import Toolchain
from tilewright.timings import Timings, Tuning

N1_CORE = Core("neoverse-n1", (64, 4, 2.0), (512, 8, 15.0))


@pytest.fixture(scope="module")
def boards() -> list[HeldBoard]:
    """Emulators that all tests share: starting one takes seconds."""
    return emulators()


def network() -> Graph:
    """Convolutions with and without groups, a product, a softmax: every kind of tile kernel."""
    return graph_of(
        "g (float[1,3,9,11] x) => (float[1,10] y) {"
        " a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0) b = Relu(a)"
        " c = Conv<group=8, pads=[1,1,1,1]>(b, w1) d = HardSwish(c) e = Conv(d, w2)"
        " f = GlobalAveragePool(e) h = Flatten(f) i = MatMul(h, w3) y = Softmax(i) }",
        w0=normal(8, 3, 3, 3),
        w1=normal(8, 1, 3, 3),
        w2=normal(24, 8, 1, 1),
        w3=normal(24, 10),
    )


def quantized(source: str, zero: int) -> Graph:
    """A pointwise convolution on integers: what it computes is exact but for one rounding."""
    rng = np.random.default_rng(5)
    dtype = np.dtype(source)
    return graph_of(
        "g (float[1,12,5,7] x) => (float[1,9,5,7] y) {"
        " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
        " v = DequantizeLinear<axis=0>(w, t) y = Conv(d, v) }",
        s=np.array(0.05, np.float32),
        z=np.array(zero, dtype),
        w=rng.integers(-127, 128, (9, 12, 1, 1)).astype(np.int8),
        t=np.linspace(0.01, 0.02, 9, dtype=np.float32),
    )


@emulated
@pytest.mark.usefixtures("boards")
@every_target
def test_a_network_answers_as_in_onnxruntime_and_twice_the_same(
    target: Target, tmp_path: Path
) -> None:
    graph = network()
    feeds = {"x": normal(1, 3, 9, 11)}
    run = ArmBackend().load(built(graph, target, tmp_path), 1, "qemu")
    found = run(feeds)["y"]
    # Sums are added up in another order: some units in the last place.
    np.testing.assert_allclose(found, oracle.run(graph, feeds)["y"], rtol=1e-5, atol=1e-6)
    assert found.tobytes() == run(feeds)["y"].tobytes()


@emulated
@pytest.mark.usefixtures("boards")
@every_target
@pytest.mark.parametrize(("source", "zero"), [("int8", 3), ("int8", -128), ("uint8", 128)])
def test_integer_layers_are_exact(
    target: Target, source: str, zero: int, tmp_path: Path
) -> None:
    graph = quantized(source, zero)
    # As far as the integers go, -128 included: sums of products must not overflow 16 bits.
    low = -128 if source == "int8" else 0
    integers = np.random.default_rng(1).integers(low, low + 256, (1, 12, 5, 7))
    integers[0, :, 0, 0] = low
    feeds = {"x": ((integers - zero) * np.float32(0.05)).astype(np.float32)}
    run = ArmBackend().load(built(graph, target, tmp_path), 1, "qemu")
    expected = oracle.run(graph, feeds)["y"]
    # The integers' sum is exact; floats are rounded once where they are scaled.
    np.testing.assert_allclose(run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@emulated
@pytest.mark.usefixtures("boards")
def test_sparse_tiles_give_the_answers_of_their_zeros(tmp_path: Path) -> None:
    weights = normal(32, 40)
    weights.reshape(8, 4, 40)[:, :, np.arange(40) % 5 < 3] = 0
    graph = graph_of("g (float[64,40] x) => (float[64,32] y) { y = MatMul(x, w) }", w=weights.T)
    build = ArmBackend().build([graph], A76, tmp_path, silent)
    assert build.layers[0].kernel == "sparse, lanes = positions"
    feeds = {"x": normal(64, 40)}
    found = ArmBackend().load(tmp_path, 1, "qemu")(feeds)["y"]
    np.testing.assert_allclose(found, feeds["x"] @ weights.T, rtol=1e-4, atol=1e-5)


@emulated
def test_a_board_without_an_instruction_refuses_before_it_crashes(tmp_path: Path) -> None:
    built(quantized("int8", 0), A76, tmp_path)
    machine = json.loads((tmp_path / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps({**machine, "qemu_cpu": "cortex-a72"}))
    with pytest.raises(UnusableInput, match=r'a CPU with "asimddp", which this one does not'):
        ArmBackend().load(tmp_path, 1, "qemu")


@emulated
@pytest.mark.usefixtures("boards")
def test_inputs_that_do_not_fit_are_refused_by_the_board(tmp_path: Path) -> None:
    graph = graph_of("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    run = ArmBackend().load(built(graph, A76, tmp_path), 1, "qemu")
    with pytest.raises(UnusableInput, match=r'Input "x" must be float32 \[2, 3\]'):
        run({"x": normal(3, 2)})
    with pytest.raises(UnusableInput, match=r'Input "x" must be .* it was not given'):
        run({})
    with pytest.raises(UnusableInput, match=r"There is no input \['z'\]"):
        run({"z": normal(2, 3)})
    assert (run({"x": -np.ones((2, 3), np.float32)})["y"] == 0).all()


@emulated
@pytest.mark.usefixtures("boards")
def test_an_index_beyond_its_table_is_refused(tmp_path: Path) -> None:
    graph = graph_of(
        "g (int64[4] x) => (float[4,8] y) { y = Gather(table, x) }", table=normal(10, 8)
    )
    run = ArmBackend().load(built(graph, A76, tmp_path), 1, "qemu")
    picked = run({"x": np.array([0, 9, -10, 5])})["y"]
    np.testing.assert_array_equal(picked, normal(10, 8)[[0, 9, 0, 5]])
    with pytest.raises(UnusableInput, match=r"a table that has 10; found 10"):
        run({"x": np.array([0, 10, 0, 0])})


@emulated
@pytest.mark.usefixtures("boards")
def test_numbers_of_any_rank_and_type_go_there_and_back(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float s, float[3] x, int64[3] i) => (float[3] y, bool[3] b, float t, int64[3] j) {"
        " y = Mul(x, s) b = Less(x, s) t = ReduceSum<keepdims=0>(x) j = Add(i, i) }"
    )
    feeds = {
        "s": np.array(2.5, np.float32),
        "x": np.array([1, 3, -2], np.float32),
        "i": np.array([1, -(2**40), 3]),
    }
    found = ArmBackend().load(built(graph, A76, tmp_path), 1, "qemu")(feeds)
    for name, values in oracle.run(graph, feeds).items():
        assert found[name].dtype == values.dtype, name
        assert found[name].shape == values.shape, name
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@emulated
@pytest.mark.usefixtures("boards")
def test_a_model_of_views_needs_no_kernels(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[2,3] x) => (float[3,2] y) { y = Reshape(x, s) }", s=np.array([3, 2])
    )
    feeds = {"x": normal(2, 3)}
    found = ArmBackend().load(built(graph, A76, tmp_path), 1, "qemu")(feeds)["y"]
    np.testing.assert_array_equal(found, feeds["x"].reshape(3, 2))


@emulated
@pytest.mark.usefixtures("boards")
def test_calls_from_several_threads_take_turns(tmp_path: Path) -> None:
    graph = graph_of("g (float[4] x) => (float[4] y) { y = Neg(x) }")
    run = ArmBackend().load(built(graph, A76, tmp_path), 1, "qemu")
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda n: run({"x": np.full(4, n, np.float32)})["y"][0], range(40))
        assert list(found) == [-n for n in range(40)]


@emulated
@pytest.mark.usefixtures("boards")
def test_weights_whose_products_overflow_are_not_multiplied_by_smull(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[1,4,5,7] x) => (float[1,8,5,7] y) {"
        " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
        " v = DequantizeLinear<axis=0>(w, t) y = Conv(d, v) }",
        s=np.array(1, np.float32),
        z=np.array(0, np.int8),
        w=np.full((8, 4, 1, 1), -128, np.int8),
        t=np.ones(8, np.float32),
    )
    build = ArmBackend().build([graph], A72, tmp_path, silent)
    assert not build.layers[0].kernel.startswith("int8 dense, lanes = positions")
    found = ArmBackend().load(tmp_path, 1, "qemu")(
        {"x": np.full((1, 4, 5, 7), -128, np.float32)}
    )
    assert (found["y"] == 4 * 128 * 128).all()


def test_a_node_without_a_kernel_is_named(tmp_path: Path) -> None:
    graph = graph_of("g (float[2,3] x) => (float[2,3] y) { y = Sin(x) }")
    with pytest.raises(CannotLower, match=r"arm-edge has no kernel for .*Sin.*no other engine"):
        ArmBackend().build([graph], A76, tmp_path, silent)


def test_what_is_timed_on_this_machine_is_not_tuned_for_another(tmp_path: Path) -> None:
    tuning = Tuning(2, 1.0, 1, Timings(tmp_path / "t.sqlite"))
    with pytest.raises(UnusableInput, match="--tune times kernels on this machine"):
        ArmBackend().check(A76, "qemu", tuning)


def test_a_target_that_lacks_its_instruction_set_is_refused(tmp_path: Path) -> None:
    bare = replace(A76, settings={**A76.settings, "isa": {"name": "neon"}})
    with pytest.raises(UnusableInput, match=r"the table \[isa\] lacks 'dot'"):
        ArmBackend().check(bare, "qemu", None)
    settings = {key: value for key, value in A76.settings.items() if key != "emulated"}
    with pytest.raises(UnusableInput, match=r'the table \[emulated\] lacks "qemu_cpu"'):
        ArmBackend().check(replace(A76, settings=settings), "qemu", None)
    mistyped = {**A76.settings, "isa": {**A76.settings["isa"], "dot": "sdott"}}
    with pytest.raises(UnusableInput, match='dot is "sdott"'):
        ArmBackend().check(replace(A76, settings=mistyped), "qemu", None)
    for wrong in ("64", [64, 4], [64, 4, "2"], [0, 4, 2.0]):
        emulated_as = {"emulated": {**A76.settings["emulated"], "l1": wrong}}
        bad = replace(A76, settings={**A76.settings, **emulated_as})
        with pytest.raises(UnusableInput, match=r"l1 of \[emulated\] is .*must be \[KiB"):
            ArmBackend().check(bad, "qemu", None)
    for mcpu, said in (("cortex-a67", r'"cortex-a67", .* Did you mean cortex-'), ("", 'is ""')):
        unknown = {**A76.settings, "isa": {**A76.settings["isa"], "mcpu": mcpu}}
        with pytest.raises(UnusableInput, match=said):
            ArmBackend().check(replace(A76, settings=unknown), "qemu", None)
    alias = {**A76.settings, "isa": {**A76.settings["isa"], "mcpu": "apple-m1"}}
    ArmBackend().check(replace(A76, settings=alias), "qemu", None)


def test_the_emulator_times_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="QEMU has no clock"):
        ArmBackend().steps(network(), A76, tmp_path, {}, 1, "qemu")
    assert ArmBackend().timer(tmp_path, {}, 1, "qemu") is None


def test_without_a_cross_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnusableInput, match=r"apt-get install g\+\+-aarch64-linux-gnu"):
        Toolchain(TRIPLE).command("g++")


# ---- estimates ----


@modelled
def test_the_multiply_adds_that_are_counted_are_those_of_the_layer(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[48,24] x) => (float[48,16] y) { y = MatMul(x, w) }", w=normal(24, 16)
    )
    artifact = built(graph, A76, tmp_path)
    counts = count_inference(artifact, *tools_for(artifact), N1_CORE)
    code = disassemble(artifact / "lib.so")
    vectors = sum(
        count.times * sum(text.startswith("fmla") and ".4s" in text for text in code.block(b))
        for b, count in counts.items()
    )
    assert vectors * 4 == 48 * 24 * 16
    again = count_inference(artifact, *tools_for(artifact), N1_CORE)
    assert {b: c.times for b, c in again.items()} == {b: c.times for b, c in counts.items()}
    # All of it fits the second cache, and is there from the run before: the matrices alone are
    # 142 lines. A launch's own few words may lie elsewhere each time.
    assert sum(count.l2_misses for count in counts.values()) < 10


@modelled
def test_fewer_tiles_are_estimated_to_take_fewer_cycles(tmp_path: Path) -> None:
    weights = normal(64, 64)
    pruned = weights.copy()
    pruned.reshape(16, 4, 64)[:, :, np.arange(64) % 5 < 3] = 0
    cycles = []
    for name, matrix in (("dense", weights), ("sparse", pruned)):
        text = "g (float[128,64] x) => (float[128,64] y) { y = MatMul(x, w) }"
        artifact = built(graph_of(text, w=matrix.T), A72, tmp_path / name)
        found = ArmBackend().estimate(artifact, A72, silent)
        assert found is not None
        assert found.model == "llvm-mca's cortex-a72 and simulated caches, one core"
        written = json.loads((artifact / "estimate.json").read_text())
        assert written["cycles"] == found.cycles
        assert {n for kernel in written["kernels"] for n in kernel["nodes"]} >= {"MatMul_0"}
        cycles.append(found.cycles)
    assert cycles[0] > 1.7 * cycles[1]


@modelled
def test_a_dependent_chain_waits_for_its_latency_and_independent_sums_do_not() -> None:
    # FMLA on a Neoverse N1: 4 cycles of latency, two a cycle (Arm's optimization guide).
    chain = ["fmla v0.4s, v1.4s, v2.4s"] * 8
    apart = [f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(16)]
    dependent, independent = block_cycles([chain, apart], "neoverse-n1")
    # The accumulator is forwarded: 2 cycles a link.
    assert dependent == pytest.approx(8 * 4, abs=17)
    assert independent == pytest.approx(8, abs=1)
    assert dependent > independent


def test_addresses_become_a_label_and_nothing_else_changes() -> None:
    assert placeless("b.ne 0x1f34 <kernel+0x20>") == "b.ne label"
    assert placeless("tbz w3, #0x1f, 0x1f34 <kernel+0x20>") == "tbz w3, #0x1f, label"
    assert placeless("ldrsw x7, [x6], #0x10") == "ldrsw x7, [x6], #0x10"
    assert placeless("fmla v0.4s, v1.4s, v2.s[0]") == "fmla v0.4s, v1.4s, v2.s[0]"


def test_without_the_tools_there_is_no_estimate_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert ArmBackend().estimate(tmp_path, A76, told.append) is None
    assert re.search("apt-get install qemu-user llvm-19", told[0])


@emulated
def test_sdot_is_what_the_a76_runs_and_the_a72_does_without(tmp_path: Path) -> None:
    for target, has in ((A76, True), (A72, False)):
        artifact = built(quantized("int8", 0), target, tmp_path / target.name)
        code = subprocess.run(
            [f"{TRIPLE}-objdump", "-d", str(artifact / "lib.so")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert ("\tsdot\t" in code) == has


@modelled
def test_an_estimate_that_fails_is_told_and_leaves_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UnusableInput("QEMU ran nothing")

    monkeypatch.setattr(arm, "estimate_cycles", fail)
    told: list[str] = []
    artifact = built(network(), A76, tmp_path)
    assert ArmBackend().estimate(artifact, A76, told.append) is None
    assert told[-1] == "no estimate of cycles: QEMU ran nothing"
