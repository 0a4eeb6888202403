"""Steps: timed in turns, and compared where they do the same work."""

from tilewright.protocol import Steps, silent
from tilewright.steps import StepTimes, meeting, time_in_turns, typical


def test_what_does_more_of_the_model_is_compared_with_all_of_it() -> None:
    fused = typical([frozenset("abc"), frozenset("d")], [[30_000, 1_000]])
    apart = typical([frozenset(name) for name in "abcd"], [[10_000, 12_000, 9_000, 1_000]])
    nodes = meeting(("a", "b"), [fused.nodes, apart.nodes])
    assert nodes == set("abc")
    assert (fused.of(nodes), apart.of(nodes)) == (30.0, 31.0)


def test_models_run_in_turns_and_the_first_run_of_each_does_not_count() -> None:
    ran: list[str] = []

    def model(name: str, nanoseconds: int) -> Steps:
        def time() -> list[int]:
            first = name not in ran
            ran.append(name)
            return [10**9 if first else nanoseconds]

        return Steps([frozenset(name)], time)

    times = time_in_turns([model("a", 5_000), model("b", 7_000)], 0.0, silent, lambda: 1.0)
    assert ran == ["a", "b"] * 8  # seven runs, even where the time is over
    assert times == [
        StepTimes((frozenset("a"),), (5.0,)),
        StepTimes((frozenset("b"),), (7.0,)),
    ]


def test_few_runs_that_were_disturbed_do_not_count() -> None:
    quiet, disturbed = [[1_000]] * 7, [[90_000]] * 3
    assert typical([frozenset("a")], quiet + disturbed).microseconds == (1.0,)
