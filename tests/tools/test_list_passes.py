from importlib import import_module

import pytest

from tilewright.errors import UnusableInput
from tilewright.passes import PARTS, PASSES
from tilewright.pipeline import load_pass, pass_options
from tilewright.tools.list_passes import list_parts, list_passes


def test_every_pass_is_listed_with_what_it_does_and_its_options() -> None:
    found = list_passes(PASSES)
    assert [described["name"] for described in found] == sorted(PASSES)
    for described in found:
        assert described["about"].endswith(".")
        cls = load_pass(described["name"], PASSES)
        names = [option["name"] for option in described["options"]]
        assert names == [option.name for option in pass_options(cls)]


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("prune-tiles", "criterion", "one of obs, magnitude, taylor, leverage"),
        ("prune-tiles", "rows", "one of uniform, global"),
        ("prune-tiles", "damp", "a positive number"),
        ("prune-channels", "floor", "a share from 0 to 1, such as 0.97"),
        ("prune-channels", "multiple", "a whole number from 1 on"),
        ("prune-gradually", "regrow", "a share of at least 0 and below 1"),
        ("prune-gradually", "start", "a share from 0 to sparsity"),
        ("heal", "loss", 'one of "cosine", "squares", "divergence"'),
        ("quantize-blocks", "block", "one of 16, 32, 64, 128, 256"),
        ("prune-tiles", "smallest", "a whole number from 0 on"),
        ("prune-tiles", "skip", None),
        ("prune-tiles", "ends", None),
    ],
)
def test_what_an_option_may_be_is_listed_in_the_words_of_its_pass(
    name: str, option: str, values: str | None
) -> None:
    (described,) = (each for each in list_passes(PASSES) if each["name"] == name)
    (found,) = (each for each in described["options"] if each["name"] == option)
    assert found["values"] == values


def test_no_allocator_and_no_criterion_is_listed_by_its_type_alone() -> None:
    for described in list_passes(PASSES):
        for option in described["options"]:
            if option["name"] in ("criterion", "allocate", "tile", "sparsity", "alpha"):
                assert option["values"], (described["name"], option["name"])


def test_every_pass_is_set_up_by_its_name_alone() -> None:
    for name in PASSES:
        assert load_pass(name, PASSES)().name == name


def test_criteria_and_allocators_are_listed_as_the_tables_hold_them() -> None:
    for option, place in PARTS.items():
        module, _, table = place.partition(":")
        held = getattr(import_module(module), table)
        parts = {part["name"]: part for part in list_parts(option, place, list_passes(PASSES))}
        assert list(parts) == list(held)
        for name, entry in held.items():
            for field in ("about", "source", "needs"):
                assert parts[name][field] == getattr(entry, field)
            assert entry.about.endswith(".")


@pytest.mark.parametrize("option", PARTS)
def test_a_pass_takes_what_is_listed_for_it_and_nothing_else(option: str) -> None:
    for part in list_parts(option, PARTS[option], list_passes(PASSES)):
        assert part["passes"]
        for name in ("prune-channels", "prune-tiles", "match-tiles"):
            cls = load_pass(name, PASSES)
            if name in part["passes"]:
                cls(**{option: part["name"]})
            elif option in [each.name for each in pass_options(cls)]:
                with pytest.raises(UnusableInput, match="must be one of"):
                    cls(**{option: part["name"]})


def test_what_a_floor_measures_is_said_where_it_is_read() -> None:
    parts = list_parts("allocate", PARTS["allocate"], list_passes(PASSES))
    for part in parts:
        said = "1 - their squared errors relative to how far the dense answers vary"
        assert ("floor" in part["reads"]) == (said in part["about"])
