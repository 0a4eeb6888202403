from importlib import import_module

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
    for place in PARTS.values():
        module, _, table = place.partition(":")
        held = getattr(import_module(module), table)
        parts = {part["name"]: part for part in list_parts(place)}
        assert list(parts) == list(held)
        for name, entry in held.items():
            for field in ("about", "source", "needs", "passes"):
                assert parts[name][field] == getattr(entry, field)
            assert entry.about.endswith(".")
            assert entry.passes
            assert set(entry.passes) <= set(PASSES)
