"""The commands that say what there is: passes, targets, and models of the zoo."""

import click

from tilewright.tools.command import command
from tilewright.tools.console import Console


@command("passes")
def passes_command(console: Console) -> None:
    """List the passes, their criteria and allocators, with options, defaults and sources.

    What an option may be stands behind its name, its default in brackets.
    """
    from tilewright.passes import PARTS, PASSES
    from tilewright.tools.list_passes import list_parts, list_passes

    passes = list_passes(PASSES)
    for described in passes:
        console.text(f"{described['name']}\n    {described['about']}")
        for option in described["options"]:
            default = "must be given" if option["default"] is None else option["default"]
            values = option["values"] or option["type"]
            console.text(f"    {option['name']}: {values} [{default}]")
        if described["source"]:
            console.text(f"    source: {described['source']}")
    parts = {option: list_parts(option, place, passes) for option, place in PARTS.items()}
    for option, choices in parts.items():
        for choice in choices:
            needs = f", needs {' and '.join(choice['needs'])}" if choice["needs"] else ""
            console.text(f"{option}={choice['name']}\n    {choice['about']}")
            console.text(f"    of {', '.join(choice['passes'])}{needs}")
            if choice["source"]:
                console.text(f"    source: {choice['source']}")
    console.result({"passes": passes, "parts": parts})


@command("targets")
@click.argument("name", required=False)
def targets_command(console: Console, name: str | None) -> None:
    """List the targets, or show all that is known of one."""
    from tilewright.tools.find_target import target_file, target_files, target_table

    if name is not None:
        described = target_table(name)
        console.text(target_file(name).read_text(encoding="utf-8").rstrip())
        console.result(described)
        return
    tables = [target_table(known) for known in target_files()]
    for table in tables:
        console.text(f"{table['name']}\n    {table['about']}")
    shown = ("name", "backend", "about")
    console.result({"targets": [{key: table[key] for key in shown} for table in tables]})


@command("list")
def zoo_list_command(console: Console) -> None:
    """List the models, their licences, sources and tasks."""
    from tilewright.tools.commands import run_zoo_list

    run_zoo_list(console)


@command("get")
@click.argument("name")
def zoo_get_command(console: Console, name: str) -> None:
    """Fetch or build a model into the cache and print its path."""
    from tilewright.tools.commands import run_zoo_get

    run_zoo_get(name, console)
