"""Photos of animals, buildings, tools and paintings, for calibration alone (GCompris's)."""

import functools
import io
from typing import Any

from tilewright.frontends.zoo.optional import optional
from tilewright.frontends.zoo.packages import DebianPackage, fetch_debian
from tilewright.frontends.zoo.read_rcc import read_rcc

_ACTIVITIES = (
    "categorization",
    "erase",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
)
SCENES = DebianPackage(
    "gcompris-qt-data",
    "3.1-2",
    tuple(f"usr/share/gcompris-qt/rcc/{name}.rcc" for name in _ACTIVITIES),
    "a6d617514d1f771ed05df89bfd9750b650bccbcd315d3bece6e16d3bab75bbc2",
)


@functools.cache
def scenes() -> tuple[bytes, ...]:
    """Return the photos as WebP files, by path; no task reads any of them."""
    files = sorted(fetch_debian(SCENES).rglob("*.rcc"))
    packed = [each for file in files for each in read_rcc(file) if each.path.endswith(".webp")]
    return tuple(each.data for each in sorted(packed, key=lambda each: each.path))


def open_scene(scene: bytes) -> Any:
    """Return a photo as RGB."""
    return optional("PIL.Image", "reading photos").open(io.BytesIO(scene)).convert("RGB")
