"""Verification: between passes, that each kept its promises; of outputs, that they agree."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice, zip_longest
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tilewright import oracle
from tilewright.errors import PassFailed, UnusableInput
from tilewright.facts import CHECKS, Fact
from tilewright.graph import Graph, constant, static_shape
from tilewright.protocol import Context, Pass
from tilewright.random_feeds import random_feeds
from tilewright.trace import same_values

FEEDS = 2
# Values compared at a time, in float64: logits of a language model fill 50 MB an inference.
_COMPARED = 1 << 20

_SHAKE = 1e-6  # some units in the last place of a float32

Outputs = Mapping[str, np.ndarray]


class Allowed(NamedTuple):
    """How far answers may be from others; see `Difference`."""

    max_rel_error: float
    rms_rel_error: float = math.inf

    def __str__(self) -> str:
        if math.isfinite(self.rms_rel_error):
            return f"{self.rms_rel_error:.1e} of all values, by root mean square,"
        return f"{self.max_rel_error:.1e} of the largest value"


class Difference(NamedTuple):
    """How far two sets of outputs are apart.

    `max_rel_error` is the largest error relative to the largest magnitude of the same output,
    and `worst` names that output; `rms_rel_error` is the errors' root mean square relative to
    that of what is expected, of the output where it is largest.
    """

    max_abs_error: float
    max_rel_error: float
    rms_rel_error: float
    worst: str

    def within(self, allowed: Allowed) -> bool:
        """Say whether errors stay under what is allowed; NaN never does."""
        most, rms = self.max_rel_error, self.rms_rel_error
        return most <= allowed.max_rel_error and rms <= allowed.rms_rel_error

    def __str__(self) -> str:
        return (
            f'output "{self.worst}" differs by {self.max_abs_error:.3g}, '
            f"{self.max_rel_error:.1e} of its largest value, {self.rms_rel_error:.1e} of all "
            "values by root mean square"
        )


# Folding and reordering change the order of float32 sums; real networks then differ by 1e-6 to
# 1e-5 of their largest output. A wrong fold differs by far more than this.
KEPT_OUTPUTS = Allowed(1e-4)


def worst_of(differences: Iterable[Difference]) -> Difference:
    """Return the largest of each figure; the name is that of the largest relative error."""
    worst = Difference(0.0, 0.0, 0.0, "")
    for each in differences:
        larger = each.max_rel_error > worst.max_rel_error or not worst.worst
        name = each.worst if larger else worst.worst
        worst = Difference(
            max(each.max_abs_error, worst.max_abs_error),
            max(each.max_rel_error, worst.max_rel_error),
            max(each.rms_rel_error, worst.rms_rel_error),
            name,
        )
    return worst


def compare(expected: Outputs, found: Outputs) -> Difference:
    """Compare outputs by name. Raises UnusableInput where names or shapes differ."""
    if set(expected) != set(found):
        raise UnusableInput(
            f"The outputs to compare have different names: {sorted(expected)} and "
            f"{sorted(found)}. Compare two forms of the same model."
        )
    return worst_of(
        _error(name, np.asarray(values), np.asarray(found[name]))
        for name, values in expected.items()
    )


def shaken(graph: Graph) -> Graph:
    """Return a model whose activations are quantized in steps that are larger by a trifle.

    It rounds some values the other way, as any engine does that adds up in another order: how
    far its answers are from the model's is how far those of a faultless engine may be.
    """
    edited = graph.edit()
    for node in edited.nodes:
        if node.op == "QuantizeLinear" and isinstance(node.inputs[1], gs.Constant):
            scale = node.inputs[1]
            values = (scale.values * (1 + _SHAKE)).astype(scale.values.dtype)
            node.inputs[1] = constant(f"{scale.name}/{node.name}/shaken", values)
    return edited


def _error(name: str, expected: np.ndarray, found: np.ndarray) -> Difference:
    if expected.shape != found.shape:
        raise UnusableInput(
            f'Output "{name}" has the shapes {expected.shape} and {found.shape}. '
            "Compare two forms of the same model on the same inputs."
        )
    if not expected.size:
        return Difference(0.0, 0.0, 0.0, name)
    if expected.dtype.kind in "biuSUO" or found.dtype.kind in "biuSUO":
        wrong = float(np.mean(expected != found))
        return Difference(wrong, wrong, wrong, name)
    largest, largest_error, squares, squared_errors = 0.0, 0.0, 0.0, 0.0
    a, b = expected.reshape(-1), found.reshape(-1)
    for start in range(0, a.size, _COMPARED):
        part = slice(start, start + _COMPARED)
        values, errors = _magnitudes(a[part], b[part])
        largest = max(largest, float(values.max()))
        largest_error = max(largest_error, float(errors.max()))
        with np.errstate(over="ignore"):
            squares += float(values @ values)
            squared_errors += float(errors @ errors)
    lost = squared_errors / (squares or 1.0) if math.isfinite(squared_errors) else math.inf
    return Difference(largest_error, largest_error / (largest or 1.0), math.sqrt(lost), name)


def _magnitudes(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the magnitudes of what is expected, where they are finite, and of the errors."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0.0, np.abs(a - b))
    # An error of NaN is as bad as any; it would win no comparison.
    errors = np.nan_to_num(errors, nan=np.inf, posinf=np.inf)
    return np.where(np.isfinite(a), np.abs(a), 0.0), errors


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
        for feeds, expected in self._expected:
            difference = compare(expected, oracle.outputs_of(session, feeds))
            if not difference.within(KEPT_OUTPUTS):
                raise PassFailed(
                    f"{difference}, from before the pass, which promises to keep it within "
                    f"{KEPT_OUTPUTS}"
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
