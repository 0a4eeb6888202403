import errno
import json
import shutil
from pathlib import Path

import pytest

from tilewright import artifact
from tilewright.errors import DamagedArtifact, UnusableInput


def write(folder: Path, content: str = "weights") -> Path:
    with artifact.writing(folder) as aside:
        (aside / "model.onnx").write_text("model")
        (aside / "weights.bin").write_text(content)
        artifact.seal(aside, {"backend": "none"})
    return folder


def fail_while_writing(folder: Path, error: BaseException) -> None:
    with artifact.writing(folder) as aside:
        (aside / "half").touch()
        raise error


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_artifact_is_read_back_with_the_sha256_of_every_file(tmp_path: Path) -> None:
    manifest = artifact.read(write(tmp_path / "a.tw"))
    assert manifest["backend"] == "none"
    assert sorted(manifest["files"]) == ["model.onnx", "weights.bin"]
    assert left_in(tmp_path) == ["a.tw"]


def test_an_artifact_and_an_empty_folder_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a.tw"
    folder.mkdir()
    write(folder)
    write(folder, "others")
    assert (folder / "weights.bin").read_text() == "others"
    assert left_in(tmp_path) == ["a.tw"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UnusableInput, match="holds files that tilewright did not write"):
        write(tmp_path / "photos")
    assert left_in(tmp_path / "photos") == ["cat.jpg"]


def test_an_artifact_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tw")
    (folder / "mine.txt").write_text("extra")
    with pytest.raises(UnusableInput, match=r"not replaced: mine\.txt\. Move them away"):
        write(folder)
    assert (folder / "mine.txt").read_text() == "extra"


def test_a_missing_parent_and_a_file_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="does not exist"):
        write(tmp_path / "no" / "a.tw")
    (tmp_path / "file").touch()
    with pytest.raises(UnusableInput, match="is a file or a link"):
        write(tmp_path / "file")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_artifact_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    folder = write(tmp_path / "a.tw")
    with pytest.raises(type(error)):
        fail_while_writing(folder, error)
    assert artifact.read(folder)["backend"] == "none"
    assert left_in(tmp_path) == ["a.tw"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "there is no space left"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "it may not be written to"),
    ],
)
def test_a_place_that_takes_no_more_is_one_message(
    tmp_path: Path, code: int, reason: str
) -> None:
    error = RuntimeError("said the linker")
    error.__cause__ = OSError(code, "said the system")
    with pytest.raises(UnusableInput, match=reason):
        fail_while_writing(tmp_path / "a.tw", error)
    assert left_in(tmp_path) == []


def test_a_place_that_takes_no_folders_is_not_called_full(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match='"/proc" takes no new folder'):
        write(Path("/proc/x.tw"))


def test_a_full_disk_is_named_even_where_the_error_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UnusableInput, match="no space left"):
        fail_while_writing(tmp_path / "a.tw", RuntimeError("ld: final link failed"))


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tw")
    (folder / "weights.bin").write_text("WEIGHTS")
    with pytest.raises(
        DamagedArtifact, match=r'the file "weights.bin" was changed: its sha256'
    ):
        artifact.read(folder)


def test_a_shortened_and_a_missing_file_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tw")
    (folder / "weights.bin").write_text("w")
    with pytest.raises(DamagedArtifact, match=r'"weights.bin" has 1 bytes, and 7 were written'):
        artifact.read(folder)
    (folder / "weights.bin").unlink()
    with pytest.raises(DamagedArtifact, match=r'"weights.bin" is missing'):
        artifact.read(folder)


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tw")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "backend": "other"}))
    with pytest.raises(DamagedArtifact, match=r"manifest.json was changed"):
        artifact.read(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DamagedArtifact, match=r"manifest.json is damaged"):
        artifact.read(folder)


def test_a_manifest_cannot_name_files_outside(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.tw")
    (tmp_path / "secret").write_text("s")
    entry = {"bytes": 1, "sha256": artifact.file_sha256(tmp_path / "secret")}
    sealed = artifact.seal(folder, {"backend": "none"})
    changed = {**sealed, "files": {"../secret": entry}}
    changed["seal"] = artifact._seal_of(changed)
    (folder / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(DamagedArtifact, match=r'"../secret" is missing'):
        artifact.read(folder)


def test_what_is_no_artifact_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="does not exist"):
        artifact.read(tmp_path / "none.tw")
    with pytest.raises(UnusableInput, match="is not an artifact"):
        artifact.read(tmp_path)
