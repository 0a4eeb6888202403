"""Photos of animals, buildings, tools and hands, for calibration alone (GCompris's)."""

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
    "leftright",
)
SCENES = DebianPackage(
    "gcompris-qt-data",
    "3.1-2",
    tuple(f"usr/share/gcompris-qt/rcc/{name}.rcc" for name in _ACTIVITIES),
    "4366f6fb91cfdd402b3955a17718e401a40c7ecaa8f98f1b185724cb09d110ef",
)


@functools.cache
def scenes() -> tuple[Any, ...]:
    """Return the photos as RGB images, by path; no task reads any of them."""
    pil = optional("PIL.Image", "reading photos")
    files = sorted(fetch_debian(SCENES).rglob("*.rcc"))
    packed = [each for file in files for each in read_rcc(file) if each.path.endswith(".webp")]
    return tuple(
        pil.open(io.BytesIO(each.data)).convert("RGB")
        for each in sorted(packed, key=lambda each: each.path)
    )
