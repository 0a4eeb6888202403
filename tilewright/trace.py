"""Trace: what each pass changed, seen from outside by comparing the graph before and after."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.graph import Graph
from tilewright.layers import Layer, linear_layers
from tilewright.removed import Removed


@dataclass(frozen=True)
class Survey:
    """What is counted in a graph: nodes by operator, weights, and zeros among them."""

    operators: Mapping[str, int]
    parameters: int
    zeros: int

    @property
    def nodes(self) -> int:
        """Nodes of the main graph and of its subgraphs."""
        return sum(self.operators.values())


@dataclass(frozen=True)
class Step:
    """One pass of a run: the graph that it left, and what differs from the one before.

    `removed` are the channels, hidden features and heads that are gone. `seconds` is a clock's
    reading; everything else depends on the inputs alone.
    """

    name: str
    after: Survey
    changed: tuple[str, ...]
    seconds: float = field(compare=False)
    removed: Removed = field(default_factory=Removed)


@dataclass(frozen=True)
class Trace:
    """The steps of a run, and the graph that it began with."""

    before: Survey
    steps: tuple[Step, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table: pass, nodes, parameters, share of zeros, seconds, what changed."""
        rows: list[tuple[str, ...]] = [("(input)", *_figures(self.before), "", "")]
        for step in self.steps:
            what = ", ".join(step.changed) or "nothing"
            rows.append((step.name, *_figures(step.after), f"{step.seconds:.2f}", what))
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return the part that is the same in every run with the same inputs."""
        return {
            "before": _survey_json(self.before),
            "steps": [
                {
                    "pass": s.name,
                    "after": _survey_json(s.after),
                    "changed": list(s.changed),
                    "removed": [group.as_json() for group in s.removed.groups],
                }
                for s in self.steps
            ],
        }

    def seconds(self) -> list[dict[str, Any]]:
        """Return the time of each pass, in order."""
        return [{"pass": s.name, "seconds": round(s.seconds, 4)} for s in self.steps]


def survey(graph: Graph) -> Survey:
    """Count the nodes and weights of a graph."""
    weights = graph.constants().values()
    return Survey(
        dict(sorted(count_operators(graph).items())),
        sum(values.size for values in weights),
        sum(values.size - int(np.count_nonzero(values)) for values in weights),
    )


def lost_weights(before: Graph, after: Graph) -> frozenset[str]:
    """Return the names of the linear layers that have fewer weights that are not zero."""
    had = {_identity(layer): _nonzeros(layer) for layer in linear_layers(before)}
    return frozenset(
        layer.name
        for layer in linear_layers(after)
        if _nonzeros(layer) < had.get(_identity(layer), 0)
    )


def _identity(layer: Layer) -> tuple[str, bool]:
    # Quantized, small weights become zero; that is not pruning.
    return layer.name, layer.is_quantized


def _nonzeros(layer: Layer) -> int:
    return int(np.count_nonzero(layer.weight.values))


def changes(before: Graph, after: Graph) -> tuple[str, ...]:
    """Say in a few words what differs: "Identity -3", "weights changed: 12"."""
    old, new = count_operators(before), count_operators(after)
    said = [
        f"{op} {new[op] - old[op]:+d}"
        for op in sorted(old.keys() | new.keys())
        if new[op] != old[op]
    ]
    old_weights, new_weights = before.constants(), after.constants()
    shared = old_weights.keys() & new_weights.keys()
    changed = sum(not same_values(old_weights[name], new_weights[name]) for name in shared)
    counts = {
        "weights changed": changed,
        "weights added": len(new_weights.keys() - shared),
        "weights removed": len(old_weights.keys() - shared),
    }
    said += [f"{what}: {count}" for what, count in counts.items() if count]
    return tuple(said)


def count_operators(graph: Graph) -> Counter[str]:
    """Count nodes by operator."""
    return Counter(node.op for scope in graph.scopes() for node in scope.nodes)


def same_values(a: np.ndarray, b: np.ndarray) -> bool:
    """Say whether two arrays hold the same; at once where they are the same memory."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.strides == b.strides and a.ctypes.data == b.ctypes.data:
        return True
    return a.tobytes() == b.tobytes() if a.size < 1024 else bool(np.array_equal(a, b))


def _figures(survey: Survey) -> tuple[str, str, str]:
    share = survey.zeros / survey.parameters if survey.parameters else 0.0
    return str(survey.nodes), f"{survey.parameters:,}", f"{share:.1%}"


def _survey_json(survey: Survey) -> dict[str, Any]:
    return {
        "nodes": survey.nodes,
        "operators": dict(survey.operators),
        "parameters": survey.parameters,
        "zeros": survey.zeros,
    }
