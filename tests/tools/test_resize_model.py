"""Models compiled for several sizes of an open dimension, against onnxruntime at each."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

import tilewright
from tests.small_models import normal, small_model
from tests.tools.conftest import made_up_times
from tilewright import artifact, oracle
from tilewright.errors import UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import Graph
from tilewright.tools import compile_model
from tilewright.tools.cli import app
from tilewright.tools.resize_model import at_other_size

# Reads its own shape, as exporters of transformers do; the mean goes over what the mask keeps.
ENCODER = """g (float[batch,length,8] x, float[batch,length] mask) => (float[batch,16] y)
    <int64[1] first = {0}, int64[1] last = {-1}, int64[2] flat = {-1, 8}, int64[1] one = {1}> {
        s = Shape(x)  ends = Slice(s, first, last)  width = Constant <value_ints = [16]> ()
        full = Concat <axis = 0> (ends, width)
        rows = Reshape(x, flat)  h = MatMul(rows, w)  r = Relu(h)  back = Reshape(r, full)
        m = Unsqueeze(mask, last)  kept = Mul(back, m)
        sum = ReduceSum <keepdims = 0> (kept, one)
        count = ReduceSum <keepdims = 1> (mask, one)
        y = Div(sum, count)
    }"""


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_model, "measure_engines", made_up_times)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    weight = normal(8, 16)
    weight[:, ::3] = 0
    onnx.save(small_model(ENCODER, 17, w=weight), tmp_path / "encoder.onnx")
    return tmp_path / "encoder.onnx"


def feeds_of(batch: int, length: int, kept: int | None = None) -> dict[str, np.ndarray]:
    mask = np.zeros((batch, length), np.float32)
    mask[:, : length if kept is None else kept] = 1
    return {"x": normal(batch, length, 8), "mask": mask}


def compiled(model: Path, dims: dict[str, int | tuple[int, ...]], **options: object) -> Path:
    folder = model.with_suffix(".tw")
    found = tilewright.compile(model, output=folder, dims=dims, **options)  # type: ignore[arg-type]
    return Path(found["artifact"])


def agrees(model: Path, folder: Path, feeds: dict[str, np.ndarray]) -> None:
    expected = oracle.outputs_of(oracle.session(onnx.load(model)), feeds)
    found = tilewright.load(folder, threads=1)(feeds)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        # Sums of eight products of unit normals, in another order.
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def test_every_size_up_to_the_largest_gives_the_models_answers(encoder: Path) -> None:
    folder = compiled(encoder, {"batch": (1, 3), "length": (12, 5, 40)})
    sizes = artifact.read(folder)["sizes"]
    assert sizes["choices"][0] == {"batch": 1, "length": 12}
    assert sizes["padded"] == ["batch", "length"]
    for shape in [(1, 12), (1, 5), (1, 40), (3, 12), (2, 30), (1, 1)]:
        agrees(encoder, folder, feeds_of(*shape))


def test_with_a_mask_the_end_is_not_computed_and_the_answers_are_the_same(
    encoder: Path,
) -> None:
    folder = compiled(encoder, {"batch": 1, "length": (12, 4)}, mask="mask")
    assert artifact.read(folder)["sizes"]["mask"] == "mask"
    agrees(encoder, folder, feeds_of(1, 12, 3))
    agrees(encoder, folder, feeds_of(1, 12))
    # What the mask leaves out may be anything, for nobody reads it.
    feeds = feeds_of(1, 12, 3)
    feeds["x"][:, 4:] = np.nan
    assert np.isfinite(tilewright.load(folder, threads=1)(feeds)["y"]).all()


ATTENTION = """g (float[1,n,8] x, int64[1,n] mask) => (float[1,n,8] y)
    <float one = {1.0}, float least = {-1e9}, int64[1] axis = {1}> {
    f = Cast <to = 1> (mask)  away = Sub(one, f)  b = Mul(away, least)
    bias = Unsqueeze(b, axis)
    k = MatMul(x, w)  kt = Transpose <perm = [0, 2, 1]> (k)  s = MatMul(x, kt)
    t = Add(s, bias)  p = Softmax(t)  y = MatMul(p, x)
}"""


def test_a_mask_may_leave_out_the_beginning_and_is_tried_without_data(tmp_path: Path) -> None:
    model = tmp_path / "attention.onnx"
    onnx.save(small_model(ATTENTION, 17, w=normal(8, 8) / 8), model)
    folder = compiled(model, {"n": (24, 6)}, mask="mask")
    for length, first in ((24, 17), (20, 3), (6, 5), (5, 0)):
        mask = np.zeros((1, length), np.int64)
        mask[:, first:] = 1
        agrees(model, folder, {"x": normal(1, length, 8), "mask": mask})


def test_weights_that_sizes_have_in_common_are_kept_once(encoder: Path) -> None:
    one = compiled(encoder, {"batch": 1, "length": 32})
    alone = (one / "weights.bin").stat().st_size
    several = compiled(encoder, {"batch": 1, "length": (32, 48, 64)})
    assert (several / "weights.bin").stat().st_size == alone


def test_pruned_weights_are_the_same_at_every_size(encoder: Path) -> None:
    folder = compiled(
        encoder,
        {"batch": 1, "length": (12, 40)},
        pipeline="fold-constants,prune-weights{sparsity=0.5}",
    )
    found = tilewright.load(folder, threads=1)
    feeds = feeds_of(1, 40)
    pruned = {
        n: v for n, v in read_onnx(folder / "model.onnx").constants().items() if v.ndim == 2
    }
    (weight,) = (v for v in pruned.values() if v.shape == (8, 16))
    assert 1 - np.count_nonzero(weight) / weight.size >= 0.5
    expected = np.maximum(feeds["x"] @ weight, 0).mean(axis=1)
    np.testing.assert_allclose(found(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(40, 12), (12, 40)])
def test_an_order_of_features_is_that_of_the_first_size_at_every_size(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    """At others there is no calibration data, and few positions have wider tiles."""
    model = tmp_path / "perceptron.onnx"
    text = """g (float[1,n,8] x) => (float[1,n,4] y) {
        h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v)
    }"""
    onnx.save(small_model(text, 17, w=normal(8, 64), v=normal(64, 4)), model)
    steps = "fold-constants,match-tiles{sparsity=0.5,ends=true,smallest=1}"
    np.savez(
        tmp_path / "inputs.npz", x=normal(20, sizes[0], 8) * np.arange(1, 9, dtype=np.float32)
    )
    data = tmp_path / "inputs.npz"
    folder = compiled(model, {"n": sizes}, pipeline=steps, calibration=data)
    agrees(model, folder, {"x": normal(1, 40, 8)})
    agrees(model, folder, {"x": normal(1, 12, 8)})


def test_where_padding_changes_answers_sizes_must_be_met(tmp_path: Path) -> None:
    model = small_model(
        """g (float[1,length] x) => (float[1,1] y)
            <int64[1] axis = {1}> { s = Softmax(x)  y = ReduceMax(s) }"""
    )
    onnx.save(model, tmp_path / "top.onnx")
    folder = compiled(tmp_path / "top.onnx", {"length": (8, 12)})
    assert artifact.read(folder)["sizes"]["padded"] == []
    agrees(tmp_path / "top.onnx", folder, {"x": normal(1, 12)})
    with pytest.raises(UnusableInput, match="must be met exactly"):
        tilewright.load(folder, threads=1)({"x": normal(1, 9)})


def test_an_input_that_leaves_out_what_counts_is_no_mask(tmp_path: Path) -> None:
    model = small_model(
        """g (float[1,length] x, float[1,length] kind) => (float[1,1] y)
            <int64[1] axis = {1}> { s = Add(x, kind)  r = Relu(s)  y = ReduceSum(r, axis) }"""
    )
    onnx.save(model, tmp_path / "sum.onnx")
    with pytest.raises(UnusableInput, match="what it leaves out changes the answers"):
        compiled(tmp_path / "sum.onnx", {"length": (8, 4)}, mask="kind")


def test_folding_behind_what_changes_answers_is_refused(encoder: Path) -> None:
    with pytest.raises(UnusableInput, match="fold-constants stands behind prune-weights"):
        compiled(
            encoder,
            {"batch": 1, "length": (12, 40)},
            pipeline="prune-weights{sparsity=0.5},fold-constants",
        )


@pytest.mark.parametrize(
    ("mask", "part"),
    [("x", "--mask x: it must be an input whose last"), ("mast", 'Did you mean "mask"')],
)
def test_what_is_no_mask_is_refused(encoder: Path, mask: str, part: str) -> None:
    with pytest.raises(UnusableInput, match=part):
        compiled(encoder, {"batch": 1, "length": (12, 5)}, mask=mask)
    assert not encoder.with_suffix(".tw").exists()


@pytest.mark.parametrize(
    ("dims", "part"),
    [
        ({"batch": 1, "length": ()}, "give a whole number"),
        ({"batch": 1, "length": (4, 0)}, "give a whole number"),
        ({"batch": 1, "length": (4, 4)}, "one twice"),
        ({"batch": 1, "length": 1.5}, "give a whole number"),
        ({"batch": 1, "length": None}, "give a whole number"),
    ],
)
def test_sizes_that_are_none_are_refused(
    encoder: Path, dims: dict[str, int | tuple[int, ...]], part: str
) -> None:
    with pytest.raises(UnusableInput, match=part):
        compiled(encoder, dims)


def test_a_mask_without_sizes_to_choose_from_is_refused(encoder: Path) -> None:
    with pytest.raises(UnusableInput, match="there is nothing to choose by it"):
        compiled(encoder, {"batch": 1, "length": 12}, mask="mask")


def test_a_model_that_is_another_network_at_another_size_is_refused() -> None:
    here, there = (
        Graph.from_onnx(
            small_model(f"g (float[1,{n}] x) => (float[1,{n}] y) {{ y = {op}(x) }}")
        )
        for n, op in ((4, "Relu"), (5, "Tanh"))
    )
    with pytest.raises(UnusableInput, match=r"--dim n=5: .*Relu .* is Tanh"):
        at_other_size(here, here, there, "n=5")


def test_a_branch_that_is_another_at_another_size_is_refused() -> None:
    here, there = (
        Graph.from_onnx(
            small_model(
                f"g (float[1,{n}] x, bool c) => (float[1,{n}] y) {{ y = If(c) <"
                "then_branch = t () => (float[1,N] a) { a = Relu(x) }, "
                f"else_branch = e () => (float[1,N] b) {{ b = {op}(x) }}> }}"
            )
        )
        for n, op in ((4, "Relu"), (5, "Tanh"))
    )
    with pytest.raises(UnusableInput, match=r"--dim n=5: .*If .* is another If"):
        at_other_size(here, here, there, "n=5")


def test_a_branch_with_another_constant_at_another_size_is_refused() -> None:
    here, there = (
        Graph.from_onnx(
            small_model(
                f"g (float[1,4] x, bool c) => (float[1,4] y) {{ y = If(c) <"
                "then_branch = t () => (float[1,4] a) { a = Relu(x) }, "
                "else_branch = e () => (float[1,4] b) {"
                f" k = Constant <value_float = {k}> () b = Mul(x, k) }}> }}"
            )
        )
        for k in (1.0, 2.0)
    )
    at_other_size(here, here, here, "n=4")
    with pytest.raises(UnusableInput, match="is another If"):
        at_other_size(here, here, there, "n=5")


def test_tensors_of_one_name_in_both_branches_have_the_shapes_of_the_other_size() -> None:
    here, there = (
        Graph.from_onnx(
            small_model(
                f"g (float[1,{n}] x, bool c) => (float[1,{n}] y) {{ y = If(c) <"
                f"then_branch = t () => (float[1,{n}] o) {{ h = Neg(x) o = Relu(h) }}, "
                f"else_branch = e () => (float[1,{n}] o) {{ h = Abs(x) o = Tanh(h) }}> }}"
            )
        ).infer_shapes()
        for n in (4, 5)
    )
    moved = at_other_size(here, here, there, "n=5")
    shapes = [t.shape for scope in moved.scopes() for t in scope.tensors().values()]
    assert all(shape in (None, [], [1, 5]) for shape in shapes)


def test_branches_run_at_every_size(tmp_path: Path) -> None:
    text = """g (float[1,n,8] x, bool c) => (float[1,n,8] z) {
        h = MatMul(x, w)
        y = If(c) <
            then_branch = t () => (float[1,n,8] a) {
                s = Shape(h)  r = Relu(h)  a = Reshape(r, s) },
            else_branch = e () => (float[1,n,8] b) { b = MatMul(h, w) }>
        z = Tanh(y)
    }"""
    model = tmp_path / "branches.onnx"
    onnx.save(small_model(text, 17, w=normal(8, 8)), model)
    folder = compiled(model, {"n": (6, 12)})
    for size in (12, 6, 7, 1):
        for condition in (True, False):
            agrees(model, folder, {"x": normal(1, size, 8), "c": np.array(condition)})


def test_an_input_that_is_missing_is_named(encoder: Path) -> None:
    folder = compiled(encoder, {"batch": 1, "length": (12, 5)})
    run = tilewright.load(folder, threads=1)
    with pytest.raises(UnusableInput, match=r"takes \['mask', 'x'\], but was given \['x'\]"):
        run({"x": normal(1, 7, 8)})


def test_bench_runs_at_one_size_that_was_compiled(encoder: Path) -> None:
    folder = compiled(encoder, {"batch": 1, "length": (12, 5)})
    several = called("bench", folder, "--dim", "length=12,5")
    assert (several.exit_code, "at one size" in several.stderr) == (2, True)
    unknown = called("bench", folder, "--dim", "length=13")
    assert (unknown.exit_code, "compiled for" in unknown.stderr) == (2, True)


def test_run_and_bench_take_what_the_artifact_takes(encoder: Path, tmp_path: Path) -> None:
    folder = compiled(encoder, {"batch": 1, "length": (12, 5)})
    np.savez(tmp_path / "short.npz", x=normal(3, 4, 8), mask=np.ones((3, 4), np.float32))
    data = ["--data", str(tmp_path / "short.npz"), "--json"]
    assert json.loads(called("run", folder, *data).stdout)["outputs"]["y"]["shape"] == [3, 16]
    quick = ["--rounds", "1", "--threads", "1", "--json"]
    found = json.loads(called("bench", folder, *quick).stdout)
    assert found["rows"][0]["engine"] == "tilewright"
    original = ["--model", str(encoder), "--dim", "length=5"]
    found = json.loads(called("bench", folder, *original, *quick).stdout)
    assert found["ratio"]["onnxruntime"] > 0
    for options, part in (
        (["--dim", "length=5"], "with --model"),
        (["--dim", "width=5"], 'no open dimension in the artifact "width"'),
        (["--data", str(tmp_path / "short.npz"), "--dim", "length=4"], "leave it out with"),
    ):
        ended = called("bench", folder, *options, *quick)
        assert ended.exit_code == 2
        assert part in ended.stderr


def test_an_artifact_of_several_batches_runs_samples_one_by_one(
    encoder: Path, tmp_path: Path
) -> None:
    folder = compiled(encoder, {"batch": (1, 4), "length": 12})
    np.savez(tmp_path / "two.npz", x=normal(2, 12, 8), mask=np.ones((2, 12), np.float32))
    ended = called("run", folder, "--data", str(tmp_path / "two.npz"), "--json")
    assert json.loads(ended.stdout)["outputs"]["y"]["shape"] == [2, 16]
    with pytest.raises(UnusableInput, match="takes arrays by input name"):
        tilewright.load(folder, threads=1)()  # type: ignore[call-arg]


def called(command: str, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [command, str(folder), *options])
