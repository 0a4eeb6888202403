"""Links, the packages table and the folders agree: pip reads one, static tools the other."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKED = ("passes", "targets", "frontends", "tools")


def folders_with_python() -> set[str]:
    found = {"tilewright"}
    for name in LINKED:
        for file in (ROOT / name).rglob("*.py"):
            found.add(file.parent.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize("name", LINKED)
def test_each_root_folder_is_linked_into_the_package(name: str) -> None:
    link = ROOT / "tilewright" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


def test_the_table_names_every_folder_that_holds_python() -> None:
    table = SETUPTOOLS["package-dir"]
    assert set(table.values()) == folders_with_python()
    assert set(SETUPTOOLS["packages"]) == set(table)
    for package, folder in table.items():
        expected = folder if folder == "tilewright" else f"tilewright/{folder}"
        assert package == expected.replace("/", ".")


def test_what_is_no_python_is_installed_too() -> None:
    data = SETUPTOOLS["package-data"]
    for package, folder in SETUPTOOLS["package-dir"].items():
        for file in (ROOT / folder).iterdir():
            if file.is_file() and file.suffix != ".py":
                assert any(file.match(each) for each in data.get(package, ())), file


def test_every_package_has_an_init_file() -> None:
    for folder in folders_with_python():
        assert (ROOT / folder / "__init__.py").is_file(), folder


def test_console_scripts_exist() -> None:
    import importlib

    for place in PROJECT["project"]["scripts"].values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_pins_carry_their_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    pinned = [i for i, line in enumerate(lines) if "==" in line]
    assert pinned
    for index in pinned:
        assert lines[index - 1].lstrip().startswith("#"), lines[index]
