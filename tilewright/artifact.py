"""The artifact: a folder that is written aside, sealed, and only then given its name.

What it holds:

    model.cpu.tw/
      model.onnx       after the passes; any ONNX runtime runs it
      plan.json        how much where
      manifest.json    what it is, how it was made, sha256 of every other file and of itself
      trace.json       what each pass changed, and the seconds of each stage
      report.html      the same for people
      ...              what the backend wrote: the library and the packed weights
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tilewright.errors import DamagedArtifact, UnusableInput

MANIFEST = "manifest.json"
MODEL = "model.onnx"
FORMAT = 3

_SHOWN_FILES = 5

_NO_PLACE = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "a file grew over the allowed size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "it may not be written to",
    errno.EPERM: "it may not be written to",
}


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Give a new folder to write an artifact into; it becomes `folder` at the end.

    The new folder lies beside `folder`, so the last step is a rename. It holds everything or
    does not exist: any error and Ctrl-C remove it. An artifact or an empty folder at `folder`
    is replaced; nothing else is ever deleted.

    Raises UnusableInput where the place cannot be written to.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder)
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        refused = f'"{folder.parent}" takes no new folder ({error.strerror})'
        raise _no_place(folder, _NO_PLACE.get(error.errno or 0, refused), "--output") from error
    try:
        with _named_obstacles(folder):
            aside.chmod(0o777 & ~_umask())
            yield aside
            _publish(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Raise UnusableInput where something stands that is neither artifact nor empty folder."""
    if not folder.parent.is_dir():
        raise UnusableInput(
            f'Output "{folder}": the folder "{folder.parent}" does not exist. Create it, or '
            "give another place with --output."
        )
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UnusableInput(
            f'Output "{folder}" is a file or a link, and an artifact is a folder. '
            "Give another place with --output."
        )
    if foreign := _foreign_files(folder):
        shown = ", ".join(foreign[:_SHOWN_FILES]) + (", ..." if foreign[_SHOWN_FILES:] else "")
        raise UnusableInput(
            f'Output "{folder}" holds files that tilewright did not write, so it is not '
            f"replaced: {shown}. Move them away, or give another place with --output."
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of an artifact. Raises DamagedArtifact."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedArtifact(
            f'"{path}" cannot be read: {error}. Compile the model again.'
        ) from error
    return content


def write_json(path: Path, content: object) -> None:
    """Write a JSON file of an artifact: the same text for the same content."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_artifact(path: Path) -> bool:
    """Say whether a folder looks like an artifact, damaged or not."""
    return (path / MANIFEST).is_file() and (path / MODEL).is_file()


def seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write manifest.json with the sha256 of every file that is in the folder by now."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    sealed: dict[str, Any] = {"format": FORMAT, **manifest, "files": files}
    sealed["seal"] = _seal_of(sealed)
    text = json.dumps(sealed, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return sealed


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact whose every file is the one that was written.

    Raises UnusableInput where there is no artifact, and DamagedArtifact naming the file.
    """
    if folder.is_file():
        raise UnusableInput(
            f'"{folder}" is a file, and an artifact is a folder; `compile` writes one.'
        )
    if not folder.is_dir():
        raise UnusableInput(f'Artifact "{folder}" does not exist; `compile` writes one.')
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected)
    return manifest


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def obstacle(
    error: BaseException, place: Path, option: str = "--output"
) -> UnusableInput | None:
    """Return what to tell the user where an error says that a place cannot be written to.

    `option` is what named the place.
    """
    found = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _NO_PLACE:
            return _no_place(place, _NO_PLACE[found.errno], option)
        found = found.__cause__ or found.__context__  # type: ignore[assignment]
    return None


@contextlib.contextmanager
def _named_obstacles(folder: Path) -> Iterator[None]:
    try:
        yield
    except UnusableInput:
        raise
    except Exception as error:
        if named := obstacle(error, folder):
            raise named from error
        # Compilers and linkers report a full disk in words of their own.
        if shutil.disk_usage(folder.parent).free < 1 << 16:
            raise _no_place(folder, _NO_PLACE[errno.ENOSPC], "--output") from error
        raise


def _no_place(place: Path, reason: str, option: str) -> UnusableInput:
    return UnusableInput(
        f'Output "{place}" cannot be written: {reason}. Nothing was left behind; '
        f"give another place with {option}."
    )


def _publish(aside: Path, folder: Path) -> None:
    if not folder.exists():
        aside.rename(folder)
        return
    check_replaceable(folder)
    # Two renames: a reader sees the old artifact, none for a moment, or the new one.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as old:
        folder.rename(Path(old) / "old")
        try:
            aside.rename(folder)
        except BaseException:
            (Path(old) / "old").rename(folder)
            raise


def _foreign_files(folder: Path) -> list[str]:
    """Return the files that the folder's manifest does not list; it lists none if damaged."""
    listed: set[str] = set()
    # Without both files it is somebody's folder, whatever its manifest says.
    if is_artifact(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            listed = {MANIFEST, *json.loads(text)["files"]}
    return [
        name
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir())
        and (name := path.relative_to(folder).as_posix()) not in listed
    ]


def _umask() -> int:
    # There is no way to read it but to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, sealed = manifest["format"], manifest["seal"]
        manifest["files"] = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in manifest["files"].items()
        }
    except FileNotFoundError:
        raise UnusableInput(
            f'"{folder}" is not an artifact: it has no {MANIFEST}. `compile` writes one.'
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(
            f'Artifact "{folder}": {MANIFEST} is damaged ({error!r}). Compile it again.'
        ) from error
    if kind != FORMAT:
        raise UnusableInput(
            f'Artifact "{folder}" has format {kind}, and this version reads format {FORMAT}. '
            "Compile the model again."
        )
    found = _seal_of(manifest)
    if found != sealed:
        raise DamagedArtifact(
            f'Artifact "{folder}": {MANIFEST} was changed: its sha256 is {found}, and '
            f"{sealed} was written. Compile the model again."
        )
    return dict(manifest)


def _seal_of(manifest: Mapping[str, Any]) -> str:
    unsealed = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def _check_file(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or not path.is_file():
        raise DamagedArtifact(
            f'Artifact "{folder}": the file "{name}" is missing. Compile the model again.'
        )
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DamagedArtifact(
            f'Artifact "{folder}": the file "{name}" has {size} bytes, and '
            f"{expected['bytes']} were written. Compile the model again."
        )
    found = file_sha256(path)
    if found != expected["sha256"]:
        raise DamagedArtifact(
            f'Artifact "{folder}": the file "{name}" was changed: its sha256 is {found}, and '
            f"{expected['sha256']} was written. Compile the model again."
        )
