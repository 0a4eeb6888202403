"""Attention: a product, a softmax of it, and the product with the values, as one kernel."""

import onnx_graphsurgeon as gs

from tilewright.graph import static_shape
from tilewright.targets.kernels.attention import AttentionKernel, Walk
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import Window, collapse


def lower_attention(lowering: Lowering, region: Region) -> None:
    """Lower softmax(Q K^T ...) V. Raises NotLowered where its lanes cannot be queries."""
    scores, softmax, values = region.parts
    shape = static_shape(scores.anchor.outputs[0])
    out = static_shape(values.anchor.outputs[0])
    assert shape is not None
    assert out is not None
    _check_axes(softmax.anchor, shape, out, lowering.graph.opset)
    batch = shape[:-2]
    query, key = (_batched(lowering, t, batch) for t in scores.anchor.inputs)
    value = _batched(lowering, values.anchor.inputs[1], batch)
    rank = len(shape)
    if query.strides[-2] != 1 or shape[-2] < lowering.isa.lanes:
        raise NotLowered("attention whose queries do not lie side by side")
    score_chain, score_operands = lowering.chain_between(scores, softmax.anchor.inputs[0])
    order = [*range(rank - 2), rank - 1, rank - 2]
    chain, operands, outputs = lowering.chain_of(values, values.anchor.outputs[0], order, 1)
    windows = [query, key, value, *score_operands, *operands, *outputs]
    dims, rows = collapse(batch, [w.strides[: rank - 2] for w in windows])
    # The last two axes of each: (query, depth), (depth, key), (key, width), (query, key), ...
    swapped = [w.strides[:-3:-1] for w in windows]
    ends = [query.strides[-2:], *swapped[1:]]
    walks = [(*r, *e) for r, e in zip(rows, ends, strict=True)]
    first, second = 3 + len(score_operands), 3 + len(score_operands) + len(operands)
    kernel = AttentionKernel(
        batch=dims,
        queries=shape[-2],
        keys=shape[-1],
        depth=query.shape[-1],
        width=out[-1],
        query=walks[0],
        key=walks[1],
        value=walks[2],
        score_chain=score_chain,
        scores=Walk(tuple(walks[3:first]), tuple(w.dtype for w in score_operands)),
        chain=chain,
        operands=Walk(tuple(walks[first:second]), tuple(w.dtype for w in operands)),
        outputs=Walk(tuple(walks[second:]), tuple(w.dtype for w in outputs)),
    )
    lowering.program.call(kernel, windows, [n.name for n in region.nodes])


def _check_axes(
    softmax: gs.Node, scores: tuple[int, ...], out: tuple[int, ...], opset: int
) -> None:
    """Raise NotLowered unless the softmax is over the keys, and the batches are the same."""
    shape = static_shape(softmax.inputs[0])
    rank = len(scores)
    axis = int(softmax.attrs.get("axis", -1 if opset >= 13 else 1)) % rank
    if shape != scores or axis != rank - 1 or out[:-2] != scores[:-2]:
        raise NotLowered("attention over other axes than the last")


def _batched(lowering: Lowering, tensor: gs.Tensor, batch: tuple[int, ...]) -> Window:
    window = lowering.window(tensor)
    if len(window.shape) < 2 or window.dtype != "float32":
        raise NotLowered("attention of vectors or of constants")
    return window.broadcast((*batch, *window.shape[-2:]))
