"""Layers of 4-bit weights in blocks, against onnxruntime and against numpy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal
from tests.targets.builds import Within, agree, every_isa, graph_of, islands, normal_feeds
from tilewright.graph import Graph, constant
from tilewright.nbits import BlockWeights, block_node, block_weights, declare, in_blocks
from tilewright.targets.lower.nibbles import pack_nibbles

# Sums of up to 256 products, 15 steps of weights each before the zero point comes off: some
# 300 in all, of which a float32 keeps 3e-5.
SUMS = Within(rtol=1e-4, atol=1e-4)
few = settings(deadline=None, max_examples=8)


def with_blocks(graph: Graph, weights: BlockWeights, *zero_points: np.ndarray) -> Graph:
    """Return a graph whose MatMul reads 4-bit weights instead."""
    edited = graph.edit()
    (node,) = (n for n in edited.nodes if n.op == "MatMul")
    small = block_node(node.name, "w", node.inputs[0], weights, node.outputs[0])
    small.inputs.extend(constant("w/zeros", z) for z in zero_points)
    node.inputs.clear()
    node.outputs.clear()
    edited.gs.nodes.remove(node)
    edited.gs.nodes.append(small)
    declare(edited)
    return edited.sorted().infer_shapes()


@st.composite
def layers(draw: st.DrawFn) -> Graph:
    block = draw(st.sampled_from([16, 32, 64]))
    inputs = block * draw(st.integers(1, 4)) - draw(st.sampled_from([0, 0, 3]))
    outputs, positions = draw(st.integers(1, 150)), draw(st.integers(1, 30))
    graph = graph_of(
        f"g (float[2,{positions},{inputs}] x) => (float[2,{positions},{outputs}] y)"
        " { a = MatMul(x, w) c = Add(a, b) d = Sigmoid(c) y = Mul(c, d) }",
        w=normal(inputs, outputs),
        b=normal(outputs),
    )
    weights = in_blocks(normal(outputs, inputs), block)
    if draw(st.booleans()):
        weights = replace(weights, scales=weights.scales * np.float32(1.0001))
    if draw(st.booleans()):
        return with_blocks(graph, weights)
    packed = np.random.default_rng(1).integers(
        0, 256, (outputs, -(-weights.scales.shape[1] // 2)), np.uint8
    )
    return with_blocks(graph, weights, packed)


@every_isa
@few
@given(graph=layers())
def test_weights_of_4_bits_agree(isa: str, graph: Graph) -> None:
    made = agree(graph, normal_feeds(graph), isa, within=SUMS)
    assert not islands(made)


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1e-3, 1.0, 1e7])
def test_rounding_moves_a_weight_by_half_a_step_of_its_block_at_most(size: float) -> None:
    matrix = normal(40, 96) * np.float32(size)
    weights = in_blocks(matrix, 32)
    steps = np.abs(weights.scales).repeat(32, axis=1)
    assert (steps <= 0.6 * size).all()
    error = np.abs(weights.dequantized() - matrix)
    # The largest weight of a block is -8 steps; its negative would be 8, but 7 is the last.
    inside = matrix / weights.scales.repeat(32, axis=1) < 7.5
    assert (error <= 0.5001 * steps)[inside].all()
    assert (error <= 1.0001 * steps).all()


def test_a_block_of_zeros_stays_zero() -> None:
    matrix = normal(4, 64)
    matrix[:, 32:] = 0
    assert (in_blocks(matrix, 32).dequantized()[:, 32:] == 0).all()


def test_what_a_node_stores_is_read_back() -> None:
    weights = in_blocks(normal(5, 48), 16)
    graph = graph_of(
        "g (float[1,48] x) => (float[1,5] y) { y = MatMul(x, w) }", w=normal(48, 5)
    )
    (node,) = with_blocks(graph, weights).nodes
    found = block_weights(node)
    assert found is not None
    np.testing.assert_array_equal(found.dequantized(), weights.dequantized())


def test_a_tile_holds_scales_zeros_and_words_block_by_block() -> None:
    weights = BlockWeights(
        np.arange(64, dtype=np.uint8).reshape(4, 16) % 16,
        np.full((4, 1), 0.5, np.float32),
        np.full((4, 1), 3, np.uint8),
        16,
    )
    packed = pack_nibbles(weights, lanes=2, vectors=1, halves=False, zeros=True)
    np.testing.assert_array_equal(packed[:4], [0.5, 0.5, -1.5, -1.5])
    words = packed[4:8].view(np.uint32)
    assert [hex(w) for w in words] == ["0x76543210", "0x76543210", "0xfedcba98", "0xfedcba98"]


def test_half_floats_of_two_vectors_share_a_word() -> None:
    weights = BlockWeights(
        np.zeros((4, 16), np.uint8),
        np.array([[1], [2], [3], [4]], np.float32),
        np.full((4, 1), 8, np.uint8),
        16,
    )
    packed = pack_nibbles(weights, lanes=2, vectors=2, halves=True, zeros=False)
    assert packed[:2].view(np.float16).tolist() == [1, 3, 2, 4]
    assert packed.size == 2 + 2 * 4


@pytest.mark.parametrize("positions", [1, 3, 24])
def test_many_positions_read_floats(positions: int) -> None:
    graph = graph_of(
        f"g (float[{positions},64] x) => (float[{positions},70] y) {{ y = MatMul(x, w) }}",
        w=normal(64, 70),
    )
    made = agree(with_blocks(graph, in_blocks(normal(70, 64), 32)), normal_feeds(graph))
    (layer,) = made.layers
    assert layer.bits == (32 if positions >= 24 else 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_left_to_onnxruntime_multiplies_in_floats_too(bits: int) -> None:
    graph = graph_of(
        "g (float[3,64] x) => (float[3,24] y) { y = MatMul(x, w) }", w=normal(64, 24)
    )
    edited = with_blocks(graph, in_blocks(normal(24, 64), 32)).edit()
    (node,) = edited.nodes
    node.attrs["accuracy_level"] = 4
    if bits == 8:
        node.attrs["bits"] = 8
        packed = np.random.default_rng(3).integers(0, 256, (24, 2, 32), np.uint8)
        node.inputs[1] = constant("w/int8", packed)
    made = agree(edited, normal_feeds(edited))
    assert len(islands(made)) == (bits == 8)
    assert all("has other than constant 4-bit weights" in note.reason for note in made.islands)
