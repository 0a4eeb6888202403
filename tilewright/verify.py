"""Verification: that every pass of a pipeline kept its promises."""

from itertools import islice, zip_longest
from typing import NamedTuple

import numpy as np
import onnx

from tilewright import oracle
from tilewright.compare import EachValue, Outputs, compare, worst_of
from tilewright.errors import PassFailed, UnusableInput
from tilewright.facts import CHECKS, Fact
from tilewright.graph import Graph, static_shape
from tilewright.protocol import Context, Pass
from tilewright.random_feeds import random_feeds
from tilewright.trace import same_values

FEEDS = 2
# Folding and reordering change the order of float32 sums; real networks then differ by 1e-6 to
# 1e-5 of their largest output. A wrong fold differs by far more than this.
KEPT_OUTPUTS = EachValue(1e-4)


class _FeedsRefused(UnusableInput):
    """The graph before any change does not run on the feeds: no pass is to blame."""


class Verifier:
    """Follows a graph through a pipeline and holds every pass to what it says."""

    def __init__(self, graph: Graph, context: Context) -> None:
        self._context = context
        self._facts: frozenset[Fact] = frozenset()
        self._ends = _ends(graph)
        # The last graph that was accepted, and the one whose outputs are to be kept.
        self._accepted = self._graph = graph
        self._expected: list[tuple[dict[str, np.ndarray], Outputs]] | None = None
        # Some models that run everywhere fail the checker; passes are not blamed for those.
        self._checker_passed = _checker(graph) is None

    def require(self, step: Pass, graph: Graph) -> None:
        """Prove the facts that a pass needs. Raises UnusableInput where one does not hold."""
        for fact in sorted(step.needs):
            if reason := CHECKS[fact](graph):
                raise UnusableInput(
                    f"{step.name} needs a graph with {fact}, but {reason}. "
                    f"Put a pass that gives {fact} before it."
                )

    def accept(self, step: Pass, graph: Graph) -> None:
        """Check a pass's result. Raises PassFailed, saying which promise was broken."""
        try:
            self._accept(step, graph)
        except _FeedsRefused:
            raise
        except UnusableInput as error:
            # onnxruntime took the graph before the pass: the pass is at fault, not the user.
            raise PassFailed(str(error)) from error

    def _accept(self, step: Pass, graph: Graph) -> None:
        for before, after in zip_longest(self._ends, _ends(graph)):
            if before is None or after is None or not before.allows(after):
                raise PassFailed(f"the model's {before} became {after}")
        if self._checker_passed and (reason := _checker(graph)):
            raise PassFailed(f"onnx.checker refuses the result: {reason}")
        self._facts = (self._facts | step.gives) - step.takes
        for fact in sorted(self._facts):
            if reason := CHECKS[fact](graph):
                raise PassFailed(f"the graph should have {fact}, but {reason}")
        if not step.keeps_outputs:
            self._graph, self._expected = graph, None
        elif not unchanged(self._accepted, graph):
            self._compare_outputs(graph)
        self._accepted = graph

    def _compare_outputs(self, graph: Graph) -> None:
        if self._expected is None:
            self._expected = self._run_before()
        session = oracle.session(graph)
        if not self._expected:
            return
        differences = compare(
            (expected, oracle.outputs_of(session, feeds)) for feeds, expected in self._expected
        )
        worst = worst_of(differences, KEPT_OUTPUTS)
        if KEPT_OUTPUTS.excess(worst) > 1:
            raise PassFailed(
                f"{worst}, from before the pass, which promises to keep it within "
                f"{KEPT_OUTPUTS.told(worst)}"
            )

    def _run_before(self) -> list[tuple[dict[str, np.ndarray], Outputs]]:
        # In a function of its own: two sessions at a time would hold the weights twice.
        session = oracle.session(self._graph)
        try:
            return [(feeds, oracle.outputs_of(session, feeds)) for feeds in self._feeds()]
        except UnusableInput as error:
            raise _FeedsRefused(str(error)) from error

    def _feeds(self) -> list[dict[str, np.ndarray]]:
        calibration = self._context.calibration
        if calibration is not None:
            return list(islice(calibration.feeds(), FEEDS))
        if any(static_shape(tensor) is None for tensor in self._graph.inputs):
            return []
        return list(random_feeds(self._graph, FEEDS, self._context.seed))


def unchanged(before: Graph, after: Graph) -> bool:
    """Say whether two graphs are surely the same computation; shapes noted on the way are not.

    Where a node has an attribute beyond numbers, texts and lists of them, the answer is no.
    """
    forms = [
        [
            (n.op, n.domain, [t.name for t in n.inputs], [t.name for t in n.outputs], n.attrs)
            for n in graph.nodes
        ]
        for graph in (before, after)
    ]
    plain = (int, float, str, bytes, list)
    if not all(isinstance(v, plain) for n in before.nodes for v in n.attrs.values()):
        return False
    if before.opset != after.opset or forms[0] != forms[1]:
        return False
    old, new = before.constants(), after.constants()
    return old.keys() == new.keys() and all(same_values(old[n], new[n]) for n in old)


class _End(NamedTuple):
    """An input or output; a shape is None while it is not known."""

    kind: str
    name: str
    dtype: object
    shape: tuple[int, ...] | None

    def allows(self, after: "_End") -> bool:
        same_shape = self.shape is None or self.shape == after.shape
        return self[:3] == after[:3] and same_shape


def _ends(graph: Graph) -> list[_End]:
    return [
        _End(kind, t.name, None if t.dtype is None else np.dtype(t.dtype), static_shape(t))
        for kind, tensors in (("input", graph.inputs), ("output", graph.outputs))
        for t in tensors
    ]


def _checker(graph: Graph) -> str | None:
    try:
        onnx.checker.check_model(graph.skeleton())
    except onnx.checker.ValidationError as error:
        return str(error).splitlines()[0]
    return None
