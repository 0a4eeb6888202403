"""Blocks: what stands between two points of a residual stream, and how little it changes it."""

from collections.abc import Sequence
from typing import NamedTuple

import networkx as nx
import numpy as np

from tilewright import oracle
from tilewright.calibration import Calibration
from tilewright.columns import real_positions
from tilewright.errors import UnusableInput
from tilewright.graph import Graph, with_outputs
from tilewright.passes.prune.criteria import alikeness
from tilewright.protocol import Feeds
from tilewright.states import internal_states


class Block(NamedTuple):
    """A sum, what goes around the block into it, and the nodes in between, by name."""

    before: str
    after: str
    nodes: frozenset[str]


def blocks_of(graph: Graph) -> list[Block]:
    """Return the blocks, in order: a sum of computed tensors one of which makes the other."""
    sums = set(internal_states(graph, graph))
    # Nodes are numbers here: their names may be those of tensors.
    flow = nx.DiGraph()
    for index, node in enumerate(graph.nodes):
        flow.add_edges_from((tensor.name, index) for tensor in node.inputs if tensor.name)
        flow.add_edges_from((index, tensor.name) for tensor in node.outputs)
    found = []
    for node in graph.nodes:
        if node.op != "Add" or node.outputs[0].name not in sums:
            continue
        one, other = (str(tensor.name) for tensor in node.inputs)
        for before, made in ((one, other), (other, one)):
            if before != made and before in (above := nx.ancestors(flow, made)):
                between = above & nx.descendants(flow, before)
                inside = (graph.nodes[each].name for each in between if isinstance(each, int))
                found.append(Block(before, str(node.outputs[0].name), frozenset(inside)))
                break
    return found


def alikeness_of(
    layers: Sequence[Sequence[str]], dense: Graph, calibration: Calibration
) -> list[float | None]:
    """Return the cosine of what goes into the block that holds some layers, and comes out.

    For each group of layers; None where they are in no block, or not all in one. The mean over
    samples and positions but for padding; features are axis 1 of images, else the last axis.
    Raises UnusableInput where the network has no blocks.
    """
    blocks = blocks_of(dense)
    if not blocks:
        raise UnusableInput(
            "allocate=entropic compares what goes into a block and what comes out, but the "
            "model adds nothing to what it was made of: it has no residual stream. Choose "
            "allocate=global."
        )
    found: dict[str, list[float]] = {block.after: [] for block in blocks}
    names = list(dict.fromkeys(name for b in blocks for name in (b.before, b.after)))
    given = {str(t.name) for t in dense.inputs}
    session = oracle.session(with_outputs(dense, [n for n in names if n not in given]))
    for feeds in calibration.feeds():
        values = {**feeds, **oracle.outputs_of(session, feeds)}
        for block in blocks:
            before, after = (_positions(values[n], feeds) for n in (block.before, block.after))
            found[block.after].append(alikeness(before, after))
    means = {after: float(np.mean(each)) for after, each in found.items()}

    def of(group: Sequence[str]) -> float | None:
        around = [block.after for block in blocks if block.nodes >= set(group)]
        # Of blocks within blocks the innermost is the first to end.
        return means[around[0]] if around else None

    return [of(group) for group in layers]


def _positions(x: np.ndarray, feeds: Feeds) -> np.ndarray:
    """Return a state as (positions, features), in float64."""
    features_last = np.moveaxis(x, 1, -1) if x.ndim > 3 else x
    shape = features_last.shape[:-1]
    real = features_last[real_positions(feeds, shape)]
    return np.asarray(real, dtype=np.float64)
