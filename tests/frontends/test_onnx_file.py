import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.small_models import normal, open_batch, small_model, two_layers
from tilewright import oracle
from tilewright.errors import UnusableInput
from tilewright.frontends.onnx_file import read_onnx
from tilewright.graph import static_shape

MATMUL = "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"


def external(folder: Path, location: str = "weights.bin", **entries: int) -> Path:
    """Write a MatMul whose weight (8, 4) is said to be at `location`, after 4096 bytes."""
    model = small_model(MATMUL)
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=(8, 4), data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, "offset": 4096, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(tensor)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(bytes(4096) + normal(8, 4).tobytes())
    return path


def test_a_file_is_read_with_shapes(tmp_path: Path) -> None:
    graph = read_onnx(two_layers(tmp_path / "m.onnx"))
    assert str(graph) == (
        "x:1x8:float32 = input\n"
        "a:1x16:float32 = Gemm(x, w[8x16 0% zeros], b[16 0% zeros])\n"
        "r:1x16:float32 = Relu(a)\n"
        "y:1x4:float32 = Gemm(r, v[16x4 0% zeros])\n"
        "return y\n"
    )


@pytest.mark.parametrize("opset", [7, 13, 22])
def test_any_opset_is_read_as_it_is(tmp_path: Path, opset: int) -> None:
    onnx.save(small_model(MATMUL, opset, w=normal(8, 4)), tmp_path / "m.onnx")
    assert read_onnx(tmp_path / "m.onnx").opset == opset


def test_external_weights_are_mapped_and_right(tmp_path: Path) -> None:
    graph = read_onnx(external(tmp_path))
    weight = graph.constants()["w"]
    np.testing.assert_array_equal(weight, normal(8, 4))
    assert not weight.flags.writeable
    base: object = weight
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    x = normal(1, 8, seed=1)
    np.testing.assert_allclose(
        oracle.run(graph, {"x": x})["y"],
        x @ normal(8, 4),
        rtol=1e-5,  # two orders of summing eight products
    )


def test_external_weights_of_a_branch_and_of_an_attribute_are_found(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(4))),
            helper.make_node("Add", ["c", "v"], ["z"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(normal(4, seed=1), "v")],
    )
    other = onnx.GraphProto()
    other.CopyFrom(branch)
    for renamed in (*other.node, *other.initializer):
        renamed.name = f"other_{renamed.name}"
    other.initializer[0].name = "v2"
    other.node[0].output[0], other.node[1].input[0] = "c2", "c2"
    other.node[1].input[1], other.node[1].output[0], other.output[0].name = "v2", "z2", "z2"
    node = helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="w.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    found = oracle.run(read_onnx(path), {"on": np.array(True)})["y"]
    np.testing.assert_array_equal(found, normal(4) + normal(4, seed=1))


def absolute(folder: Path) -> Path:
    return external(folder, str(folder / "weights.bin"))


def missing(folder: Path) -> Path:
    return external(folder, "none.bin")


def too_short(folder: Path) -> Path:
    path = external(folder)
    os.truncate(folder / "weights.bin", 4100)
    return path


def wrong_length(folder: Path) -> Path:
    return external(folder, length=12)


def leads_out(folder: Path) -> Path:
    (folder / "inner").mkdir()
    path = external(folder / "inner", "../weights.bin")
    external(folder)
    return path


def link_out(folder: Path) -> Path:
    (folder / "inner").mkdir()
    path = external(folder / "inner", "link.bin")
    external(folder)
    (folder / "inner" / "link.bin").symlink_to(folder / "weights.bin")
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (absolute, "which is not a path relative to the model's folder"),
        (missing, 'is said to be in "none.bin", but there is no such file'),
        (too_short, 'needs 128 bytes at 4,096 of "weights.bin", which has only 4,100 bytes'),
        (wrong_length, r"needs 128 bytes for its shape \(8, 4\), but the model gives it 12"),
        (leads_out, 'in "../weights.bin", which leads out of the model\'s folder'),
        (link_out, "which is a link to a file outside the model's folder"),
    ],
)
def test_bad_external_data_is_named_with_tensor_and_file(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UnusableInput, match=f'the weight "w" .*{message}'):
        read_onnx(write(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" * 9, bytes(64)])
def test_other_files_are_not_onnx_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UnusableInput, match="is not an ONNX file"):
        read_onnx(tmp_path / "m.onnx")


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = two_layers(tmp_path / "m.onnx").read_bytes()
    for size in range(3, len(whole), 7):
        (tmp_path / "m.onnx").write_bytes(whole[:size])
        with pytest.raises(UnusableInput, match="is damaged or cut short"):
            read_onnx(tmp_path / "m.onnx")


def test_a_checkpoint_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(UnusableInput, match="a zip file, maybe a PyTorch checkpoint"):
        read_onnx(tmp_path / "m.onnx")


def test_open_dimensions_are_bound_by_name_and_shapes_follow(tmp_path: Path) -> None:
    graph = read_onnx(open_batch(tmp_path / "m.onnx"), {"batch": 3})
    assert static_shape(graph.inputs[0]) == (3, 8)
    assert static_shape(graph.outputs[0]) == (3, 4)


def test_a_place_overrules_a_symbol_and_defaults_may_say_too_much(tmp_path: Path) -> None:
    path = open_batch(tmp_path / "m.onnx")
    graph = read_onnx(path, {"x:0": 5}, defaults={"batch": 1, "width": 7})
    assert static_shape(graph.inputs[0]) == (5, 8)


def test_open_dimensions_are_listed_with_their_flags(tmp_path: Path) -> None:
    text = "g (float[batch,?,8] x, float[batch,8] z) => (float[batch,?,8] y) { y = Add(x, x) }"
    onnx.save(small_model(text), tmp_path / "m.onnx")
    with pytest.raises(UnusableInput, match=r"--dim batch=N --dim x:1=N$"):
        read_onnx(tmp_path / "m.onnx")


def test_unknown_and_impossible_dimensions_are_refused(tmp_path: Path) -> None:
    path = open_batch(tmp_path / "m.onnx")
    with pytest.raises(UnusableInput, match=r'no such open dimension. It has "batch"'):
        read_onnx(path, {"batch": 1, "bacth": 1})
    with pytest.raises(UnusableInput, match="at least 1"):
        read_onnx(path, {"batch": 0})
    with pytest.raises(UnusableInput, match="the model fixes this dimension to 8"):
        read_onnx(path, {"batch": 1, "x:1": 9})


def test_stale_shapes_inside_do_not_survive_a_new_size(tmp_path: Path) -> None:
    model = small_model("g (float[n,8] x) => (float[n,8] y) { a = Relu(x) y = Relu(a) }")
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 8]))
    onnx.save(model, tmp_path / "m.onnx")
    graph = read_onnx(tmp_path / "m.onnx", {"n": 2})
    assert static_shape(graph.nodes[0].outputs[0]) == (2, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_and_counted(tmp_path: Path, bad: float) -> None:
    weight = normal(8, 4)
    weight[2] = bad
    onnx.save(small_model(MATMUL, w=weight), tmp_path / "m.onnx")
    counts = "4 NaN and 0 Inf" if np.isnan(bad) else "0 NaN and 4 Inf"
    with pytest.raises(UnusableInput, match=f'the weight "w" holds {counts} among 32 values'):
        read_onnx(tmp_path / "m.onnx")


def test_a_mask_of_zeros_and_minus_infinity_is_meant(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { y = Add(x, mask) }"
    mask = np.array([0, 0, -np.inf, -np.inf], np.float32)
    onnx.save(small_model(text, mask=mask), tmp_path / "m.onnx")
    assert "mask" in read_onnx(tmp_path / "m.onnx").constants()


def test_an_operator_that_onnxruntime_does_not_know_is_named(tmp_path: Path) -> None:
    model = small_model("g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }")
    model.graph.node[0].op_type = "Rleu"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnusableInput, match=r"cannot be loaded by onnxruntime.*Rleu"):
        read_onnx(tmp_path / "m.onnx")


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    model = small_model("g (float[1,8] x) => (float[1,8] y) { y = Relu(x) }")
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Twist", ["a"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Twist", "own"
    onnx.save(model, tmp_path / "m.onnx")
    assert [node.op for node in read_onnx(tmp_path / "m.onnx").nodes] == ["Relu", "Neg"]


def test_weights_that_old_files_list_as_inputs_are_not_fed(tmp_path: Path) -> None:
    model = small_model(MATMUL, w=normal(8, 4))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 4]))
    # Before version 4 they had to.
    for version in (model.ir_version, 3):
        model.ir_version = version
        onnx.save(model, tmp_path / "m.onnx")
        graph = read_onnx(tmp_path / "m.onnx")
        assert [tensor.name for tensor in graph.inputs] == ["x"]
        assert static_shape(graph.nodes[0].outputs[0]) == static_shape(graph.outputs[0])
        assert static_shape(graph.nodes[0].outputs[0]) is not None


def test_a_model_without_nodes_is_called_that(tmp_path: Path) -> None:
    model = small_model(MATMUL, w=normal(8, 4))
    del model.graph.node[:]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnusableInput, match="has no nodes"):
        read_onnx(tmp_path / "m.onnx")


def test_inputs_of_strings_are_refused_and_a_path_may_be_text(tmp_path: Path) -> None:
    model = small_model("g (string[1] x) => (string[1] y) { y = Identity(x) }")
    onnx.save(model, tmp_path / "s.onnx")
    with pytest.raises(UnusableInput, match='input "x" of strings, which are not supported'):
        read_onnx(str(tmp_path / "s.onnx"))
