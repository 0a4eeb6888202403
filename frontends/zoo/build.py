"""Find or build a model of the zoo in the cache."""

import json
from pathlib import Path

from tilewright.cache import Report, cache_folder, quiet, sha256_of, write_aside
from tilewright.errors import UnknownName
from tilewright.frontends.zoo.catalogue import FAMILIES, MODELS, Family

RECORD = "built.json"


def get(name: str, report: Report = quiet) -> Path:
    """Return the .onnx file of a zoo model; build it first if it is not in the cache.

    A build is kept only after its check: copied models by sha256, built ones by parity with the
    original. Raises UnknownName, and UnusableInput when a package cannot be had.
    """
    if name not in MODELS:
        raise UnknownName("zoo model", name, MODELS)
    family = next(f for f in FAMILIES if name in f.models)
    folder = cache_folder() / "models" / family.name
    if not is_built(family, folder):
        with write_aside(folder) as aside:
            aside.mkdir()
            family.build(aside, report)
            write_record(family, aside)
    return folder / f"{name}.onnx"


def is_built(family: Family, folder: Path) -> bool:
    """Tell whether `folder` holds this recipe's files as they were when they were checked."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return bool(
        record["recipe"] == family.recipe
        and all(fingerprint(folder / name) == known for name, known in record["files"].items())
    )


def write_record(family: Family, folder: Path) -> None:
    """Note beside freshly checked files what they are."""
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    record = {"recipe": family.recipe, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def fingerprint(path: Path) -> str:
    """Return the sha256 of a graph, the size of another file, or "missing".

    Reading hundreds of megabytes of external weights at every call would cost seconds.
    """
    if not path.is_file():
        return "missing"
    return sha256_of(path) if path.suffix == ".onnx" else f"{path.stat().st_size} bytes"
