"""The product of two activations."""

from tilewright.graph import static_shape
from tilewright.targets.kernels.product import DotKernel, ProductKernel
from tilewright.targets.lower.lowering import Lowering, NotLowered
from tilewright.targets.lower.regions import Region
from tilewright.targets.lower.window import collapse


def lower_product(lowering: Lowering, region: Region) -> None:
    """Lower MatMul of two activations; lanes run where one of them is contiguous."""
    node = region.anchor
    a, b = (lowering.window(t) for t in node.inputs)
    shape = static_shape(node.outputs[0])
    assert shape is not None
    if len(a.shape) < 2 or len(b.shape) < 2 or a.dtype != "float32" or b.dtype != "float32":
        raise NotLowered("MatMul of vectors, or of a constant from the left")
    batch = shape[:-2]
    a = a.broadcast((*batch, *a.shape[-2:]))
    b = b.broadcast((*batch, *b.shape[-2:]))
    rank = len(shape)
    # Lanes run along rows where the left operand allows it: a softmax behind is then vertical.
    along_rows = a.strides[-2] == 1 or (b.strides[-1] != 1 and shape[-2] > shape[-1])
    if shape[-2] == 1:
        along_rows = False
    lane_axis, other_axis = (rank - 2, rank - 1) if along_rows else (rank - 1, rank - 2)
    order = [*range(rank - 2), other_axis, lane_axis]
    chain, operands, outputs = lowering.chain_of(region, node.outputs[0], order, 1)
    scalars = b if along_rows else a
    vectors = a if along_rows else b
    depth = a.shape[-1]
    scalar_walk = (scalars.strides[-1], scalars.strides[-2])
    vector_walk = (vectors.strides[-2], vectors.strides[-1])
    if not along_rows:
        scalar_walk, vector_walk = scalar_walk[::-1], vector_walk[::-1]
    windows = [*operands, *outputs]
    dims, rows = collapse(
        batch,
        [w.strides[: rank - 2] for w in (scalars, vectors, *windows)],
    )
    count = len(operands)
    ends = [(w.strides[other_axis], w.strides[lane_axis]) for w in windows]
    # Loading every so many elements into lanes takes as long as loading each by itself.
    apart = vector_walk[0] != 1 and (scalar_walk[1], vector_walk[1]) == (1, 1)
    kernel = (DotKernel if apart and not depth % lowering.isa.lanes else ProductKernel)(
        batch=dims,
        rows=shape[other_axis],
        columns=shape[lane_axis],
        depth=depth,
        scalars=(*rows[0], *scalar_walk),
        vectors=(*rows[1], *vector_walk),
        chain=chain,
        operands=tuple((*r, *e) for r, e in zip(rows[2 : 2 + count], ends, strict=False)),
        operand_dtypes=tuple(w.dtype for w in operands),
        outputs=tuple((*r, *e) for r, e in zip(rows[2 + count :], ends[count:], strict=True)),
        output_dtypes=tuple(w.dtype for w in outputs),
    )
    lowering.program.call(
        kernel, [scalars, vectors, *operands, *outputs], [n.name for n in region.nodes]
    )
