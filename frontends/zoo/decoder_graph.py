"""The two graphs of a Llama-like decoder: many tokens at once, or one after others.

Names of weights are those of smollm2.py. T is the number of tokens before and in this run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tilewright.frontends.zoo.graph_writer import GraphWriter, value

LAYERS, FEATURES, HEADS, KEY_HEADS, HEAD = 30, 576, 9, 3, 64
VOCABULARY = 49152
EPSILON = 1e-5
ROTARY_BASE = 100_000.0
MOST_POSITIONS = 2048


@dataclass
class Decoder:
    """A decoder graph in the making, for `tokens` tokens; `past` names the tokens before."""

    tokens: int
    past: str | None
    g: GraphWriter = field(default_factory=GraphWriter)
    cosine: str = "rotary.cosine"
    sine: str = "rotary.sine"


def prefill_graph(weights: Sequence[TensorProto], tokens: int) -> onnx.ModelProto:
    """Return input_ids (1, tokens) -> logits, present_k0, present_v0, present_k1, ..."""
    decoder = Decoder(tokens, None)
    cosine, sine = rotary_tables(tokens)
    decoder.g.weight(decoder.cosine, cosine[None, None])
    decoder.g.weight(decoder.sine, sine[None, None])
    later = np.triu(np.ones((tokens, tokens), np.bool_), 1)
    decoder.g.weight("causal", np.where(later, -1e9, 0)[None, None].astype(np.float32))
    return decoder_graph(decoder, "smollm2", weights, [])


def decode_graph(weights: Sequence[TensorProto]) -> onnx.ModelProto:
    """Return input_ids, position_ids (1, 1), past_k0, ... -> logits, present_k0, ...

    past_* are (1, 3, past, 64); present_* are one longer.
    """
    decoder = Decoder(1, "past")
    g = decoder.g
    tables = rotary_tables(MOST_POSITIONS)
    decoder.cosine, decoder.sine = (
        g.op(
            "Unsqueeze",
            f"rotary.{name}",
            g.op(
                "Gather",
                f"rotary.{name}.row",
                g.weight(f"rotary.{name}.table", table),
                "position_ids",
            ),
            g.ints(1),
        )
        for name, table in zip(("cosine", "sine"), tables, strict=True)
    )
    inputs = [value("position_ids", TensorProto.INT64, [1, 1])]
    shape: list[int | str] = [1, KEY_HEADS, "past", HEAD]
    inputs += [
        value(f"past_{part}{i}", TensorProto.FLOAT, shape)
        for i in range(LAYERS)
        for part in "kv"
    ]
    return decoder_graph(decoder, "smollm2-decode", weights, inputs)


def decoder_graph(
    decoder: Decoder,
    name: str,
    weights: Sequence[TensorProto],
    more_inputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """Return embedding, layers, norm, and the embedding again as the output layer."""
    g = decoder.g
    g.weights.extend(weights)
    x = g.op("Gather", "embed", "embed.weight", "input_ids")
    for i in range(LAYERS):
        x = layer(decoder, i, x)
    x = rms_norm(g, "norm", x)
    g.op(
        "MatMul", "logits", x, g.op("Transpose", "unembed.weight", "embed.weight", perm=(1, 0))
    )
    tokens, total = decoder.tokens, "total" if decoder.past else decoder.tokens
    outputs = [value("logits", TensorProto.FLOAT, [1, tokens, VOCABULARY])]
    grown: list[int | str] = [1, KEY_HEADS, total, HEAD]
    outputs += [
        value(f"present_{part}{i}", TensorProto.FLOAT, grown)
        for i in range(LAYERS)
        for part in "kv"
    ]
    ids = value("input_ids", TensorProto.INT64, [1, tokens])
    return g.model(name, [ids, *more_inputs], outputs)


def layer(decoder: Decoder, i: int, x: str) -> str:
    """Add attention and a gated feed-forward, each with norm before and residual after."""
    g, here = decoder.g, f"layer{i}"
    mixed = attention(decoder, i, rms_norm(g, f"{here}.norm1", x))
    out = g.op("MatMul", f"{here}.output", mixed, f"{here}.output.weight")
    x = g.op("Add", f"{here}.attended", x, out)
    normed = rms_norm(g, f"{here}.norm2", x)
    gate = g.op("MatMul", f"{here}.gate", normed, f"{here}.gate.weight")
    silu = g.op("Mul", f"{here}.silu", gate, g.op("Sigmoid", f"{here}.sigmoid", gate))
    up = g.op("MatMul", f"{here}.up", normed, f"{here}.up.weight")
    gated = g.op("Mul", f"{here}.gated", silu, up)
    down = g.op("MatMul", f"{here}.down", gated, f"{here}.down.weight")
    return g.op("Add", f"{here}.fed", x, down)


def attention(decoder: Decoder, i: int, x: str) -> str:
    """Add softmax(q k^T / 8 + mask) v; three query heads share a key head.

    Query heads are grouped as (1, 3, 3, tokens, 64) against keys (1, 3, 1, T, 64), so that keys
    and values are broadcast and never repeated.
    """
    g, here, tokens = decoder.g, f"layer{i}", decoder.tokens
    query = rotate(decoder, f"{here}.query", split_heads(decoder, f"{here}.query", x, HEADS))
    key = rotate(decoder, f"{here}.key", split_heads(decoder, f"{here}.key", x, KEY_HEADS))
    values = split_heads(decoder, f"{here}.value", x, KEY_HEADS)
    key, values = remember(decoder, "k", i, key), remember(decoder, "v", i, values)
    grouped = g.ints(1, KEY_HEADS, HEADS // KEY_HEADS, tokens, HEAD)
    query = g.op("Reshape", f"{here}.query.grouped", query, grouped)
    key = g.op("Unsqueeze", f"{here}.key.grouped", key, g.ints(2))
    key = g.op("Transpose", f"{here}.key.turned", key, perm=(0, 1, 2, 4, 3))
    values = g.op("Unsqueeze", f"{here}.value.grouped", values, g.ints(2))
    scores = g.op("MatMul", f"{here}.scores", query, key)
    scores = g.op("Mul", f"{here}.scaled", scores, g.constant(HEAD**-0.5))
    if not decoder.past:
        scores = g.op("Add", f"{here}.masked", scores, "causal")
    share = g.op("Softmax", f"{here}.share", scores, axis=-1)
    mixed = g.op("MatMul", f"{here}.mixed", share, values)
    mixed = g.op("Reshape", f"{here}.ungrouped", mixed, g.ints(1, HEADS, tokens, HEAD))
    mixed = g.op("Transpose", f"{here}.merged", mixed, perm=(0, 2, 1, 3))
    return g.op("Reshape", f"{here}.context", mixed, g.ints(1, tokens, FEATURES))


def split_heads(decoder: Decoder, name: str, x: str, heads: int) -> str:
    """Add a linear layer and turn its output to (1, heads, tokens, 64)."""
    g = decoder.g
    flat = g.op("MatMul", name, x, f"{name}.weight")
    split = g.op("Reshape", f"{name}.split", flat, g.ints(1, decoder.tokens, heads, HEAD))
    return g.op("Transpose", f"{name}.heads", split, perm=(0, 2, 1, 3))


def rotate(decoder: Decoder, name: str, x: str) -> str:
    """Add x cos + (-second half, first half) sin. Su et al., "RoFormer" (2021)."""
    g, half = decoder.g, HEAD // 2
    first = g.op("Slice", f"{name}.first", x, g.ints(0), g.ints(half), g.ints(3))
    second = g.op("Slice", f"{name}.second", x, g.ints(half), g.ints(HEAD), g.ints(3))
    turned = g.op(
        "Concat", f"{name}.swapped", g.op("Neg", f"{name}.neg", second), first, axis=3
    )
    straight = g.op("Mul", f"{name}.cosine", x, decoder.cosine)
    turned = g.op("Mul", f"{name}.sine", turned, decoder.sine)
    return g.op("Add", f"{name}.rotated", straight, turned)


def remember(decoder: Decoder, part: str, i: int, x: str) -> str:
    """Add the output present_*: what was remembered, with this run's rows behind it."""
    if not decoder.past:
        return decoder.g.op("Identity", f"present_{part}{i}", x)
    return decoder.g.op("Concat", f"present_{part}{i}", f"past_{part}{i}", x, axis=2)


def rms_norm(g: GraphWriter, name: str, x: str) -> str:
    """Add x / sqrt(mean(x^2) + epsilon) * gain. Zhang & Sennrich (2019)."""
    square = g.op("Mul", f"{name}.square", x, x)
    mean = g.op("ReduceMean", f"{name}.mean", square, axes=[-1], keepdims=1)
    root = g.op("Sqrt", f"{name}.root", g.op("Add", f"{name}.safe", mean, g.constant(EPSILON)))
    return g.op("Mul", name, g.op("Div", f"{name}.unit", x, root), f"{name}.gain")


def rotary_tables(positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines (positions, 64) float32; both halves of a head turn alike."""
    rates = 1 / ROTARY_BASE ** (np.arange(0, HEAD, 2, dtype=np.float64) / HEAD)
    angles = np.outer(np.arange(positions), rates)
    angles = np.concatenate([angles, angles], -1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
