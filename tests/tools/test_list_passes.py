from importlib import import_module

import pytest

from tilewright.errors import UnusableInput
from tilewright.passes import PARTS, PASSES
from tilewright.pipeline import load_pass, pass_options
from tilewright.tools.list_passes import list_parts, list_passes


def test_the_list_read_from_source_says_what_the_classes_say() -> None:
    for described in list_passes(PASSES):
        cls = load_pass(described["name"], PASSES)
        assert described["name"] == cls.name
        assert described["source"] == cls.source
        assert cls.__doc__ is not None
        assert cls.__doc__.startswith(described["about"])
        assert described["about"]
        names = [option["name"] for option in described["options"]]
        assert names == [option.name for option in pass_options(cls)]


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
