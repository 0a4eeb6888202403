from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_models import normal, small_graph
from tilewright.calibration import Calibration
from tilewright.errors import PassFailed, UnknownName, UnusableInput
from tilewright.facts import Fact
from tilewright.graph import Graph, constant
from tilewright.layout import Tile
from tilewright.passes import PASSES
from tilewright.pipeline import Pipeline, pass_options
from tilewright.protocol import Context, Note, Outcome
from tilewright.reproduce import read_reproduction, write_reproduction
from tilewright.target import LaneOrder, Target

CPU = Target("cpu", "none", "for tests", "", {"fp32": (LaneOrder("channels", Tile(4), 1),)})
NO_FACTS: frozenset[Fact] = frozenset()
TEXT = "g (float[1,4] x) => (float[1,3] y) { y = MatMul(x, w) }"


@dataclass(frozen=True)
class Scale:
    """Multiply every weight."""

    by: float = 1.0
    times: int = 1
    quietly: bool = False
    label: str = ""
    skip: tuple[str, ...] = ()
    limit: float | None = None

    name: ClassVar[str] = "scale"
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = NO_FACTS
    gives: ClassVar[frozenset[Fact]] = NO_FACTS
    takes: ClassVar[frozenset[Fact]] = NO_FACTS
    keeps_outputs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.times < 0:
            raise ValueError(f"times is {self.times}, but must not be negative")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        edited = graph.edit()
        tensors = edited.gs.tensors()
        for name, values in graph.constants().items():
            if self.by != 1:
                tensors[name].values = constant(name, values * np.float32(self.by)).values
        return Outcome(edited, (Note("y", "noted"),))


@dataclass(frozen=True)
class Rename:
    """Give the output another name."""

    name: ClassVar[str] = "rename"
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.STATIC_SHAPES})
    gives: ClassVar[frozenset[Fact]] = NO_FACTS
    takes: ClassVar[frozenset[Fact]] = NO_FACTS
    keeps_outputs: ClassVar[bool] = False

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        edited = graph.edit()
        edited.gs.outputs[0].name = "z"
        return Outcome(edited)


@dataclass(frozen=True)
class Boast:
    """Claim that there are no identities."""

    name: ClassVar[str] = "boast"
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = NO_FACTS
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_IDENTITIES})
    takes: ClassVar[frozenset[Fact]] = NO_FACTS
    keeps_outputs: ClassVar[bool] = False

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        return Outcome(graph)


@dataclass(frozen=True)
class Lacking:
    """Always lack something."""

    name: ClassVar[str] = "lacking"
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Fact]] = NO_FACTS
    gives: ClassVar[frozenset[Fact]] = NO_FACTS
    takes: ClassVar[frozenset[Fact]] = NO_FACTS
    keeps_outputs: ClassVar[bool] = True

    def check(self, context: Context, /) -> None:
        raise UnusableInput(f"lacking: {len(context.behind)} pass behind it")

    def __call__(self, graph: Graph, context: Context, /) -> Outcome:
        return Outcome(graph)


REGISTRY = {cls.name: f"{__name__}:{cls.__name__}" for cls in (Scale, Rename, Boast)}


def parse(text: str) -> Pipeline:
    return Pipeline.parse(text, REGISTRY)


def test_a_pipeline_is_read_and_printed_back() -> None:
    text = 'scale{by=0.6,skip=a|"b, c"},boast'
    assert parse(text) == Pipeline((Scale(by=0.6, skip=("a", "b, c")), Boast()))
    assert str(parse(text)) == text


def test_options_are_printed_where_they_were_written_or_are_not_at_their_defaults() -> None:
    assert str(parse(" scale { times=2 , by = 1.0} , boast{}")) == "scale{by=1.0,times=2},boast"
    assert str(Pipeline((Scale(by=1.0, times=2), Boast()))) == "scale{times=2},boast"


def test_an_empty_pipeline_has_no_passes() -> None:
    assert parse("") == Pipeline(())


@given(
    st.builds(
        Scale,
        by=st.floats(allow_nan=False),
        times=st.integers(min_value=0),
        quietly=st.booleans(),
        label=st.text(),
        skip=st.lists(st.text()).map(tuple),
        limit=st.none() | st.floats(allow_nan=False),
    )
)
def test_every_pipeline_comes_back_from_its_text(step: Scale) -> None:
    pipeline = Pipeline((step, step))
    assert parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale boast", '"," is wanted at character 7, but there is "boast"'),
        ("scale{by}", '"=" is wanted at character 9, but there is "}"'),
        ("scale{by=0.5", '"}" is wanted at character 13, but there is the end'),
        ("scale{", '"}" is wanted at character 7, but there is the end'),
        ("scale{by=0.5 label=x}", '"," is wanted at character 14, but there is "label"'),
        ('scale{label="x', "a closing quote is wanted at character 13"),
        ("scale{by=much}", 'option "by" of scale must be a number, but it is "much"'),
        ("scale{quietly=1}", 'must be true or false, but it is "1"'),
        ("scale{by=1,by=2}", 'scale has the option "by" twice'),
        ("scale{times=-1}", "scale cannot be set up: times is -1, but must not be negative"),
        (",scale", 'the name of a pass is wanted at character 1, but there is ","'),
    ],
)
def test_text_that_cannot_be_read_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UnusableInput) as caught:
        parse(text)
    assert message in str(caught.value)


def test_an_unknown_pass_or_option_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r'no pass "scael". Did you mean "scale"\?'):
        parse("scael")
    with pytest.raises(UnknownName, match=r'option of scale "skp". Did you mean "skip"\?'):
        parse("scale{skp=a}")


def test_options_are_described_and_replaced() -> None:
    assert pass_options(Scale)[0] == ("by", "a number", "1.0")
    assert pass_options(Scale)[4] == ("skip", "a text, or several joined by |", "")
    pipeline = parse("scale{times=3},boast")
    assert str(pipeline.replace("by", 1.0)) == "scale{by=1.0,times=3},boast"
    assert str(pipeline.only(lambda step: step.name == "boast")) == "boast"


def run(text: str, graph: Graph, folder: Path) -> tuple[Graph, list[str]]:
    clock = iter(range(100))
    done = parse(text).run(
        graph, Context(CPU), reproductions=folder, clock=lambda: float(next(clock))
    )
    return done.graph, [" ".join(row) for row in done.trace.rows()]


def test_a_run_says_what_each_pass_changed(tmp_path: Path) -> None:
    graph = small_graph(TEXT, w=np.eye(4, 3, dtype=np.float32))
    out, rows = run("scale,scale{by=1.00001}", graph, tmp_path)
    assert rows == [
        "(input) 1 12 75.0%  ",
        "scale 1 12 75.0% 1.00 nothing",
        "scale{by=1.00001} 1 12 75.0% 1.00 weights changed: 1",
    ]
    assert out.constants()["w"][0, 0] == np.float32(1.00001)


def test_a_run_names_the_layers_that_lost_weights(tmp_path: Path) -> None:
    text = """g (float[1,4] x) => (float[1,3] y) {
        a = MatMul(x, w)  v = Transpose(u)  y = MatMul(a, v)
    }"""
    weights = np.eye(3, 4, dtype=np.float32)
    graph = small_graph(text, w=normal(4, 4), u=weights)
    first, second = (n.name for n in graph.nodes if n.op == "MatMul")
    for steps, expected in (
        ("fold-constants", set()),
        ("prune-weights{sparsity=0.5}", {first}),
        ("prune-weights{sparsity=0.1},fold-constants", {first}),
        # A third of the second layer is not zero: half of its weights go, some that are not.
        ("fold-constants,prune-weights{sparsity=0.8}", {first, second}),
        (
            "prune-weights{sparsity=0.1},fold-constants,prune-weights{sparsity=0.8}",
            {first, second},
        ),
    ):
        done = Pipeline.parse(steps, PASSES).run(graph, Context(CPU), reproductions=tmp_path)
        assert done.pruned == expected, steps


def test_a_pass_that_changes_answers_it_promised_to_keep_leaves_a_folder_that_reruns_it(
    tmp_path: Path,
) -> None:
    graph = small_graph(TEXT, w=normal(4, 3))
    with pytest.raises(PassFailed) as caught:
        run("scale,scale{by=2.0},boast", graph, tmp_path)
    assert 'scale: output "y" differs by' in str(caught.value)
    assert str(caught.value).endswith(f"Rerun: tilewright reproduce {tmp_path}/0001-scale")
    stored = read_reproduction(tmp_path / "0001-scale")
    assert stored.pipeline == "scale{by=2.0},boast"
    assert stored.target == CPU
    assert stored.model.is_file()


def test_a_folder_that_reruns_a_pass_holds_the_calibration_it_had(tmp_path: Path) -> None:
    text = "g (float[1,4] x, int64[2] ids) => (float[1,4] y) { y = Relu(x) }"
    graph = small_graph(text)
    arrays = {"x": normal(3, 4), "ids": np.arange(6).reshape(3, 2)}
    context = Context(CPU, calibration=Calibration.from_arrays(arrays, graph.inputs))
    stored = read_reproduction(write_reproduction(tmp_path, "scale", graph, "scale", context))
    assert stored.arrays is not None
    assert {name: x.dtype for name, x in stored.arrays.items()} == {
        "x": np.float32,
        "ids": np.int64,
    }
    for name, values in arrays.items():
        np.testing.assert_array_equal(stored.arrays[name], values)


def test_a_second_failure_gets_the_next_number(tmp_path: Path) -> None:
    graph = small_graph(TEXT, w=normal(4, 3))
    for number in ("0001", "0002"):
        with pytest.raises(PassFailed, match=f"{number}-rename"):
            run("rename", graph, tmp_path)


def test_a_pass_that_renames_an_output_fails(tmp_path: Path) -> None:
    with pytest.raises(PassFailed, match=r"name='y'.* became .*name='z'"):
        run("rename", small_graph(TEXT, w=normal(4, 3)), tmp_path)


def test_a_fact_that_is_claimed_and_not_true_fails(tmp_path: Path) -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { a = Identity(x) y = Relu(a) }"
    with pytest.raises(
        PassFailed, match="should have no-identities, but Identity_0 only renames"
    ):
        run("boast", small_graph(text), tmp_path)


def test_what_a_later_pass_lacks_is_said_before_the_first_one_runs() -> None:
    ran: list[str] = []
    context = Context(CPU, report=ran.append)
    with pytest.raises(UnusableInput, match="lacking: 1 pass behind it"):
        Pipeline((Scale(), Lacking(), Boast())).run(small_graph(TEXT, w=normal(4, 3)), context)
    assert ran == []


def test_a_fact_that_a_pass_needs_is_the_users_to_mend(tmp_path: Path) -> None:
    graph = small_graph("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    with pytest.raises(UnusableInput, match="rename needs a graph with static-shapes, but"):
        run("rename", graph, tmp_path)
    assert not any(tmp_path.iterdir())
