"""Read a Debian package without dpkg: an `ar` archive that holds a compressed tar."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath

from tilewright.errors import UnusableInput

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60


def extract_deb(
    archive: Path, wanted: tuple[str, ...], suffixes: tuple[str, ...], target: Path
) -> None:
    """Write the files at or below `wanted` in a .deb to `target`, keeping their paths.

    Only files with one of `suffixes` are taken; no suffixes means all files.

    Links are left out: a package may point anywhere with them.
    """
    target.mkdir(parents=True, exist_ok=True)
    name, packed = data_member(archive)
    with tarfile.open(fileobj=io.BytesIO(unpack(name, packed, archive))) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or ".." in path.parts:
                continue
            if not any(path.is_relative_to(place) for place in wanted):
                continue
            if suffixes and path.suffix not in suffixes:
                continue
            source = tar.extractfile(member)
            assert source is not None, "a regular file of a tar can be read"
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with source, (target / path).open("wb") as out:
                shutil.copyfileobj(source, out)


def data_member(archive: Path) -> tuple[str, bytes]:
    """Return name and bytes of the `data.tar.*` member of a .deb."""
    with archive.open("rb") as file:
        if file.read(len(AR_MAGIC)) != AR_MAGIC:
            raise UnusableInput(
                f"zoo: {archive} should be a Debian package, but it does not begin with "
                f"{AR_MAGIC!r}. Remove it and run again."
            )
        while len(header := file.read(AR_HEADER_BYTES)) == AR_HEADER_BYTES:
            name = header[:16].decode("ascii").strip().rstrip("/")
            size = int(header[48:58])
            if name.startswith("data.tar"):
                return name, file.read(size)
            # Members start on even offsets.
            file.seek(size + size % 2, 1)
    raise UnusableInput(
        f"zoo: {archive} has no data.tar member, so it is damaged. Remove it and run again."
    )


def unpack(name: str, packed: bytes, archive: Path) -> bytes:
    """Return `packed` in a form that tarfile reads by itself (it knows gz, bz2 and xz)."""
    if not name.endswith(".zst"):
        return packed
    try:
        return subprocess.run(
            ["zstd", "-dc"], input=packed, capture_output=True, check=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UnusableInput(
            f"zoo: {archive.name} is packed with zstd, and the zstd program did not unpack it "
            f"({error}). Install zstd and run again."
        ) from error
