"""The commands about devices that are not this machine."""

from pathlib import Path

import click

from tilewright.tools.arguments import PATH, TARGET
from tilewright.tools.command import command
from tilewright.tools.console import Console


@command("build")
@TARGET
@click.option(
    "--output", "-o", type=PATH, help="Folder to write; TARGET-programs if not given."
)
def device_build_command(console: Console, target: str, output: Path | None) -> None:
    """Make what boards need: a server for TVM RPC, and a runner of artifacts without Python.

    Copy the folder to the board. There, `tilewright-server --key NAME` takes artifacts over the
    network, with --tracker HOST:PORT as one of a fleet; `tilewright-run ARTIFACT` runs one that
    lies there.
    """
    from tilewright.tools.build_programs import build_programs

    folder = output or Path(f"{Path(target).stem}-programs")
    with console.working():
        files = build_programs(target, folder, console.report)
    console.table(("file", "bytes"), [(name, str(size)) for name, size in files.items()])
    console.text(f"Written: {folder}")
    console.result({"written": str(folder), "files": files})
