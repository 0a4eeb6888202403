"""Say which of several artifacts run on the device that a user asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright import artifact
from tilewright.errors import UnusableInput
from tilewright.protocol import HOST


def give_device(models: Mapping[str, Mapping[str, Any]], device: str | None) -> set[str]:
    """Return the names of the artifacts to run on `device`, out of manifests by name.

    What was compiled for this machine runs nowhere else, and nothing else runs on it. Raises
    UnusableInput where a device is asked for and none of them can be given it.
    """
    if device is None:
        return set()
    places = {name: str(manifest.get("device", HOST)) for name, manifest in models.items()}
    given = {name for name, place in places.items() if (place == HOST) == (device == HOST)}
    if not given:
        found = ", ".join(f'{name} for "{place}"' for name, place in places.items())
        raise UnusableInput(
            f"--device {device}: nothing here can be run there; there is "
            f"{found or 'no artifact'}. Leave the option out, or give an artifact for it."
        )
    return given


def devices_of(models: tuple[str, ...], device: str | None) -> list[str | None]:
    """Return the device to load each model with: None for .onnx files, and as above."""
    if device is None:
        return [None for _ in models]
    manifests = {model: artifact.read(Path(model)) for model in models if Path(model).is_dir()}
    given = give_device(manifests, device)
    return [device if model in given else None for model in models]
