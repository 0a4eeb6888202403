"""Read calibration data: .npz archives, or folders of .npz and .npy files."""

import zipfile
from pathlib import Path

import numpy as np

from tilewright.errors import UnusableInput


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return arrays by input name, samples stacked along axis 0.

    `path` is an .npz file whose arrays are named like the model's inputs; or a folder of such
    files, joined in the order of their names; or a folder with one <input>.npy an input.

    Raises UnusableInput where nothing is there or something cannot be read. Pickled objects
    are refused: loading one runs code.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UnusableInput(
            f'Calibration data "{path}" does not exist. Give an .npz file or a folder.'
        )
    return _read_npz(path)


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    archives, singles = sorted(folder.glob("*.npz")), sorted(folder.glob("*.npy"))
    if archives and singles:
        raise UnusableInput(
            f'Calibration folder "{folder}" holds {len(archives)} .npz and {len(singles)} .npy '
            "files. Keep one kind: .npz files with all inputs, or one .npy an input."
        )
    if singles:
        return {path.stem: _read_npy(path) for path in singles}
    if not archives:
        raise UnusableInput(
            f'Calibration folder "{folder}" holds no samples: there is no .npz or .npy file.'
        )
    parts = [_read_npz(path) for path in archives]
    for path, part in zip(archives, parts, strict=True):
        if part.keys() != parts[0].keys():
            raise UnusableInput(
                f'Calibration file "{path}" holds {sorted(part)}, but "{archives[0].name}" '
                f"holds {sorted(parts[0])}. Give every file the same arrays."
            )
    return {name: _joined(name, parts, folder) for name in parts[0]}


def _joined(name: str, parts: list[dict[str, np.ndarray]], folder: Path) -> np.ndarray:
    try:
        return np.concatenate([part[name] for part in parts])
    except ValueError as error:
        raise UnusableInput(
            f'Calibration folder "{folder}": the arrays "{name}" of its files do not stack: '
            f"{error}."
        ) from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # np.load would take a lone array or a pickle under this name too.
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    if not arrays:
        raise UnusableInput(f'Calibration file "{path}" holds no arrays.')
    return arrays


def _read_npy(path: Path) -> np.ndarray:
    try:
        values: np.ndarray = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error
    return values


def _unreadable(path: Path, error: Exception) -> UnusableInput:
    empty = path.is_file() and not path.stat().st_size
    return UnusableInput(
        f'Calibration file "{path}" cannot be read: {"it is empty" if empty else error}. '
        "Write it with np.savez(path, **{input_name: array})."
    )
