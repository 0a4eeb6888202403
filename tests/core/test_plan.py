from pathlib import Path

import numpy as np
import pytest

from tests.graphs import DEVICE
from tests.small_models import normal, small_graph
from tilewright.errors import UnusableInput
from tilewright.plan import Plan, plan_of

PLAN = Plan({"b": {"tile": "4x1", "sparsity": 0.5}, "a": {"sparsity": 1}})
TEXT = """{"levels": {
  "a": {"sparsity": 1},
  "b": {"sparsity": 0.5, "tile": "4x1"}
}}
"""


def test_a_plan_is_written_sorted_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    PLAN.write(path)
    assert path.read_text() == TEXT
    assert Plan.read(path) == PLAN


def test_an_empty_plan_is_a_plan() -> None:
    assert Plan.parse(str(Plan())) == Plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ('{"levels": {"a": {}, "a": {}}}', '"a" occurs twice'),
        ("[]", r'must be an object with the one key "levels", but it is \[\]'),
        ('{"layers": {}}', r"an object with the keys \['layers'\]"),
        ('{"levels": [1]}', r'"levels" of plan must map items to levels, but it is \[1\]'),
        ('{"levels": {"a": 0.5}}', 'Level of "a" in plan must be an object'),
        (
            '{"levels": {"a": {"sparsty": 0.8}}}',
            'no key for "a" in plan called "sparsty". Did you mean "sparsity"',
        ),
        ('{"levels": {"a": {"sparsity": null}}}', '"sparsity" of "a" in plan must be a number'),
        ('{"levels": {"a": {"sparsity": true}}}', "but it is true"),
    ],
)
def test_a_malformed_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        Plan.parse(text)


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r'Plan ".*nothing.json" cannot be read'):
        Plan.read(tmp_path / "nothing.json")


def test_a_plan_is_read_back_from_zeros() -> None:
    tiled, wide, scattered = (normal(16, 16, seed=s).T.copy() for s in range(3))
    tiled[:8, :4] = 0  # half the inputs of one of four tiles of 4 outputs
    wide[:4, :] = 0  # a quarter of the inputs of every tile of 8 outputs
    scattered[::2, ::3] = 0
    g = small_graph(
        """g (float[1,8,16] x, float[1,16] z) => (float[1,8,16] d, float[1,16] c) {
            a = MatMul(x, tiled)  b = MatMul(a, scattered)
            d = MatMul(b, full)  c = MatMul(z, wide)
        }""",
        tiled=tiled,
        scattered=scattered,
        full=normal(16, 16, seed=9),
        wide=wide,
    )
    levels = {node.outputs[0].name: node.name for node in g.nodes}
    assert plan_of(g, DEVICE).levels == {
        levels["a"]: {"sparsity": 0.125, "tile": "4x1"},
        levels["b"]: {"sparsity": float(np.mean(scattered == 0)), "tile": "1x1"},
        levels["c"]: {"sparsity": 0.25, "tile": "8x1"},
    }


def with_zeros(matrix: np.ndarray, gone: np.ndarray) -> Plan:
    """Read the plan back from a layer of (outputs, inputs) weights."""
    text = f"g (float[1,8,{matrix.shape[1]}] x) => (float[1,8,N] y) {{ y = MatMul(x, w) }}"
    return plan_of(small_graph(text, w=np.where(gone, 0, matrix).T), DEVICE)


@pytest.mark.parametrize(
    ("pattern", "first"), [("2:4", [0, 0, 1, 1]), ("1:4", [0, 0, 0, 1]), ("1:2", [0, 1])]
)
def test_a_pattern_is_read_back_where_every_group_follows_it(
    pattern: str, first: list[int]
) -> None:
    r = np.random.default_rng(0)
    groups = np.tile(np.array(first) == 0, (8, 16 // len(first) * 2, 1))
    gone = r.permuted(groups, axis=2).reshape(8, 32)
    (level,) = with_zeros(normal(8, 32), gone).levels.values()
    assert level == {"sparsity": 1 - sum(first) / len(first), "tile": pattern}
    # One weight more that is zero, and nobody knows what was meant.
    gone[3, np.flatnonzero(~gone[3])[0]] = True
    (level,) = with_zeros(normal(8, 32), gone).levels.values()
    assert level["tile"] == "1x1"


def test_a_pattern_of_a_convolution_runs_along_its_channels() -> None:
    r = np.random.default_rng(0)
    kept = r.permuted(np.tile([0, 0, 1, 1], (16, 2, 3, 3, 1)), axis=4)
    weights = normal(16, 8, 3, 3) * np.moveaxis(kept, 4, 2).reshape(16, 8, 3, 3)
    g = small_graph(
        "g (float[1,8,5,5] x) => (float[1,16,3,3] y) { y = Conv(x, w) }",
        w=weights.astype(np.float32),
    )
    (level,) = plan_of(g, DEVICE).levels.values()
    assert level == {"sparsity": 0.5, "tile": "2:4"}


def test_tiles_are_no_pattern_although_they_leave_half() -> None:
    gone = np.repeat(np.tile([True, False, False, True, True, True, False, False], 4), 4)
    (level,) = with_zeros(normal(4, 32), gone.reshape(32, 4).T).levels.values()
    assert level == {"sparsity": 0.5, "tile": "4x1"}
