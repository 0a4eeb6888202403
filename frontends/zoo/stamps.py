"""Photos of single things on nothing (Tux Paint's stamps), and of textures and places."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.cache import Report, quiet
from tilewright.frontends.zoo.optional import optional
from tilewright.frontends.zoo.packages import DebianPackage, fetch_debian
from tilewright.frontends.zoo.stamp_labels import THINGS, right_classes

STAMPS = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    ("usr/share/tuxpaint/stamps",),
    "8b9f5e6346dccb5ea4d2ac7c0bf13162bd1c0cf570418dfd65800c256d74a05c",
    (".png", ".txt"),
)
PHOTOS = DebianPackage(
    "tuxpaint-data",
    "1:0.9.28-sdl2-1",
    ("usr/share/tuxpaint/templates",),
    "5da818e69e75510022f736448090836e0464f9af69848e445fc0b9d606fc4e1b",
    (".jpg",),
)
PURPOSE = "reading photos"


@dataclass(frozen=True)
class Stamp:
    """A picture with transparency around the thing, and its right ImageNet classes."""

    path: Path
    classes: tuple[int, ...] = ()


def stamps_folder(report: Report = quiet) -> Path:
    """Return the folder of all stamps."""
    return fetch_debian(STAMPS, report) / STAMPS.paths[0]


@functools.cache
def pictures() -> tuple[Path, ...]:
    """Return the captioned stamps that are not drawings or mirrored copies, sorted."""
    root = stamps_folder()
    return tuple(
        path
        for path in sorted(root.rglob("*.png"), key=lambda p: p.relative_to(root).as_posix())
        if "_mirror" not in path.name
        and "cartoon" not in path.relative_to(root).as_posix().lower()
        and path.with_suffix(".txt").exists()
    )


@functools.cache
def labelled_stamps() -> tuple[Stamp, ...]:
    """Return the 151 stamps with known ImageNet classes: the evaluation set."""
    found = (Stamp(path, right_classes(path, topic(path))) for path in pictures())
    return tuple(stamp for stamp in found if stamp.classes)


@functools.cache
def other_stamps() -> tuple[Stamp, ...]:
    """Return the stamps that no evaluation uses, not even under another folder's name."""
    taken = {stamp.path.stem for stamp in labelled_stamps()}
    return tuple(
        Stamp(path) for path in pictures() if path.stem not in taken and topic(path) in THINGS
    )


def topic(path: Path) -> str:
    """Return the folder of stamps that a picture comes from, such as "animals"."""
    return path.relative_to(stamps_folder()).parts[0]


@functools.cache
def photos(evaluation: bool) -> tuple[Any, ...]:
    """Return the photos of textures and places for evaluation, or the others, as RGB."""
    pil = optional("PIL.Image", PURPOSE)
    paths = sorted(fetch_debian(PHOTOS).rglob("*.jpg"))[0 if evaluation else 1 :: 2]
    return tuple(pil.open(path).convert("RGB") for path in paths)


def cut_out(stamp: Stamp) -> Any:
    """Return a stamp as RGBA without its transparent border."""
    image = optional("PIL.Image", PURPOSE).open(stamp.path).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def on_white(stamp: Stamp, size: int) -> NDArray[np.uint8]:
    """Return (size, size, 3): the stamp centred on a white square with a margin of 6 %."""
    pil = optional("PIL.Image", PURPOSE)
    square = on_colour(cut_out(stamp), (255, 255, 255), 1.12)
    # Two steps, as the published numbers were taken.
    small = square.resize((256, 256), pil.BICUBIC)
    return np.asarray(small.resize((size, size), pil.BICUBIC))


def on_colour(image: Any, colour: tuple[int, ...], side: float) -> Any:
    """Return an RGBA image on a square of one colour, with `side` times its longer side."""
    pil = optional("PIL.Image", PURPOSE)
    length = int(max(image.size) * side)
    square = pil.new("RGBA", (length, length), (*colour, 255))
    square.alpha_composite(image, ((length - image.width) // 2, (length - image.height) // 2))
    return square.convert("RGB")


def tilted(stamp: Stamp, r: RandomState) -> Any:
    """Return a stamp as RGBA without its border, half of them turned by up to 20 degrees."""
    image = cut_out(stamp)
    if r.rand() < 0.5:
        bicubic = optional("PIL.Image", PURPOSE).BICUBIC
        image = image.rotate(float(r.uniform(-20, 20)), resample=bicubic, expand=True)
    return image.crop(image.getchannel("A").getbbox())


def square_crop(photo: Any, r: RandomState, size: int, smallest: float = 1.0) -> Any:
    """Return a random square of a photo; its side is `smallest` to 1 of the photo's."""
    side = min(photo.size)
    if smallest < 1.0:
        side = int(side * r.uniform(smallest, 1.0))
    x, y = (int(r.randint(0, length - side + 1)) for length in photo.size)
    return photo.crop((x, y, x + side, y + side)).resize((size, size))


def composite(
    stamp: Stamp, photo: Any, r: RandomState, size: int = 120
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a stamp of `size` pixels at a random place of a photo of 224, and its mask."""
    pil = optional("PIL.Image", PURPOSE)
    image = cut_out(stamp)
    scale = size / max(image.size)
    shape = tuple(max(1, int(length * scale)) for length in image.size)
    image = image.resize(shape, pil.BICUBIC)
    below = square_crop(photo, r, 224).convert("RGBA")
    x, y = (int(r.randint(0, 224 - length + 1)) for length in image.size)
    below.alpha_composite(image, (x, y))
    mask = np.zeros((224, 224), np.bool_)
    mask[y : y + image.height, x : x + image.width] = np.asarray(image.getchannel("A")) > 128
    return np.asarray(below.convert("RGB")), mask


@functools.cache
def labelled_composites() -> tuple[tuple[NDArray[np.uint8], NDArray[np.bool_]], ...]:
    """Return the 51 composites of the evaluation set: pixels (224, 224, 3) and mask."""
    r = RandomState(0)
    below = photos(evaluation=True)
    chosen = labelled_stamps()[::3]
    return tuple(composite(stamp, below[i % len(below)], r) for i, stamp in enumerate(chosen))
