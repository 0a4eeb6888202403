import numpy as np
import pytest

from tests.small_models import normal, small_graph
from tilewright.facts import CHECKS, Fact
from tilewright.graph import Graph

HOLDS = small_graph(
    "g (float[1,4] x) => (float[1,3] y) { a = MatMul(x, w)  y = Relu(a) }", w=normal(4, 3)
)


@pytest.mark.parametrize("fact", Fact)
def test_every_fact_has_a_check_that_a_plain_graph_passes(fact: Fact) -> None:
    assert CHECKS[fact](HOLDS) is None


@pytest.mark.parametrize(
    ("fact", "text", "found"),
    [
        (
            Fact.STATIC_SHAPES,
            "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }",
            r'"y" \(Relu .*\) has shape .*n',
        ),
        (
            Fact.CONSTANTS_FOLDED,
            "g (float[1,4] x) => (float[4,4] y) { a = Neg(w)  y = Add(x, a) }",
            "Neg .* reads constants only",
        ),
        (
            Fact.BATCHNORM_FOLDED,
            """g (float[1,4,5] x) => (float[1,4,5] y) {
                a = Conv(x, k)  y = BatchNormalization(a, v, v, v, v)
            }""",
            "follows Conv",
        ),
        (
            Fact.NO_IDENTITIES,
            "g (float[2] x) => (float[2] y) { a = Relu(x)  b = Identity(a)  y = Neg(b) }",
            "only renames",
        ),
        (
            Fact.FINITE_WEIGHTS,
            "g (float[1,4] x) => (float[1,4] y) { y = Add(x, bad) }",
            '"bad" holds 2 values that are NaN or Inf, of 4',
        ),
    ],
)
def test_what_contradicts_a_fact_is_named(fact: Fact, text: str, found: str) -> None:
    weights = {
        "w": normal(4, 4),
        "k": normal(4, 4, 1),
        "v": np.ones(4, np.float32),
        "bad": np.array([1, np.nan, np.inf, 2], np.float32),
    }
    wanted = {
        name: values
        for name, values in weights.items()
        if f"{name})" in text or f"{name}," in text
    }
    with pytest.raises(AssertionError, match=found):
        holds(fact, small_graph(text, **wanted))


def holds(fact: Fact, graph: Graph) -> None:
    if contradiction := CHECKS[fact](graph):
        raise AssertionError(contradiction)


def test_identities_at_the_ends_are_no_contradiction() -> None:
    g = small_graph("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    assert CHECKS[Fact.NO_IDENTITIES](g) is None


def test_a_known_output_is_no_contradiction() -> None:
    g = small_graph("g (float[2] x) => (float[2] y) { y = Neg(w) }", w=normal(2))
    assert CHECKS[Fact.CONSTANTS_FOLDED](g) is None
