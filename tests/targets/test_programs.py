"""Random programs of kernels and views on two threads, against onnxruntime.

Each kernel has its own test; these find what goes wrong between them: layouts that one leaves
and the next does not expect, memory that is used again too early.
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal, small_model
from tests.targets.builds import Within, built, cpu, every_isa, normal_feeds
from tilewright import oracle
from tilewright.graph import Graph

# A dozen operators one after the other, softmax and normalization among them.
CLOSE = Within(rtol=1e-3, atol=1e-4)
# 16 and more make vectors, 24 positions another lane order, 1 an axis that means nothing.
EXTENTS = st.sampled_from([1, 2, 3, 5, 8, 16, 17, 24, 33])

Shape = tuple[int, int, int]


class Writer:
    """A graph in the making: the tensors so far, with their shapes, and the nodes' text."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.shapes: dict[str, Shape] = {"x": draw(st.tuples(EXTENTS, EXTENTS, EXTENTS))}
        self.weights: dict[str, np.ndarray] = {}
        self.body: list[str] = []

    def add(self) -> None:
        """Append an operator on one of the last tensors."""
        source = self.draw(st.sampled_from(list(self.shapes)[-3:]))
        kinds = (self.layer, self.row, self.transpose, self.slice, self.pair, self.mean)
        self.draw(st.sampled_from(kinds))(source, self.shapes[source])

    def layer(self, source: str, shape: Shape) -> None:
        outputs = self.draw(EXTENTS)
        weights = normal(shape[2], outputs, seed=len(self.body)) / shape[2] ** 0.5
        if self.draw(st.booleans()):
            weights[::2, : outputs // 4 * 4] = 0
        name = self.constant(weights)
        self.node(f"MatMul({source}, {name})", (shape[0], shape[1], outputs))

    def row(self, source: str, shape: Shape) -> None:
        axis = self.draw(st.integers(0, 2))
        scale = self.constant(normal(shape[2], seed=len(self.body)))
        calls = [
            f"Softmax <axis = {axis}> ({source})",
            f"LayerNormalization({source}, {scale})",
            f"Tanh({source})",
            f"Relu({source})",
        ]
        self.node(self.draw(st.sampled_from(calls)), shape)

    def transpose(self, source: str, shape: Shape) -> None:
        perm = self.draw(st.permutations(range(3)))
        a, b, c = (shape[p] for p in perm)
        self.node(f"Transpose <perm = {perm}> ({source})", (a, b, c))

    def slice(self, source: str, shape: Shape) -> None:
        axis, step = self.draw(st.integers(0, 2)), self.draw(st.sampled_from([1, 2, -1]))
        start, end = (0, 2**31) if step > 0 else (-1, -(2**31))
        parts = [self.constant(np.array([n])) for n in (start, end, axis, step)]
        a, b, c = (-(-n // abs(step)) if i == axis else n for i, n in enumerate(shape))
        self.node(f"Slice({source}, {', '.join(parts)})", (a, b, c))

    def pair(self, source: str, shape: Shape) -> None:
        alike = [name for name, other in self.shapes.items() if other == shape]
        other = self.draw(st.sampled_from(alike))
        if self.draw(st.booleans()):
            self.node(f"Add({source}, {other})", shape)
        else:
            both = (shape[0], 2 * shape[1], shape[2])
            self.node(f"Concat <axis = 1> ({source}, {other})", both)

    def mean(self, source: str, shape: Shape) -> None:
        axes = self.constant(np.array([self.draw(st.integers(0, 2))]))
        name = f"m{len(self.body)}"
        self.body.append(f"{name} = ReduceMean <keepdims = 1> ({source}, {axes})")
        self.node(f"Sub({source}, {name})", shape)

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights[name] = values
        return name

    def node(self, call: str, shape: Shape) -> None:
        name = f"t{len(self.body)}"
        self.body.append(f"{name} = {call}")
        self.shapes[name] = shape


@st.composite
def programs(draw: st.DrawFn) -> Graph:
    """Return a graph of up to eight operators over tensors of three axes."""
    writer = Writer(draw)
    for _ in range(draw(st.integers(2, 8))):
        writer.add()
    names = list(writer.shapes)
    kept = {names[-1], *draw(st.sets(st.sampled_from(names[1:]), max_size=2))}
    shown = {n: ",".join(map(str, s)) for n, s in writer.shapes.items()}
    outputs = ", ".join(f"float[{shown[n]}] {n}" for n in names if n in kept)
    text = f"g (float[{shown['x']}] x) => ({outputs}) {{ {' '.join(writer.body)} }}"
    return Graph.from_onnx(small_model(text, 18, **writer.weights)).infer_shapes()


@every_isa
@settings(deadline=None, max_examples=15)
@given(graph=programs())
def test_programs_agree(isa: str, graph: Graph) -> None:
    feeds = normal_feeds(graph)
    expected = oracle.run(graph, feeds)
    executable, _ = built(graph, cpu(isa), threads=2)
    # Twice: nothing may hang on what the arena held before.
    for _ in range(2):
        found = executable(feeds)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, *CLOSE, err_msg=name)
