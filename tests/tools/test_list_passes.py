from tilewright.passes import PASSES
from tilewright.pipeline import load_pass, pass_options
from tilewright.tools.list_passes import list_passes


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
