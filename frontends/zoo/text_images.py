"""Rendered lines and pages of English words, with known text.

Words, fonts and seeds are fixed; pixels may still differ in the last bit between versions of
Pillow, which draws them.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.cache import Report, quiet
from tilewright.frontends.zoo.optional import optional
from tilewright.frontends.zoo.packages import DebianPackage, fetch_debian
from tilewright.frontends.zoo.wordnet import vocabulary

FOLDER = "usr/share/fonts/truetype/dejavu"
FONTS = (
    DebianPackage(
        "fonts-dejavu-core",
        "2.37-6",
        (FOLDER,),
        "419c6eb62d23e8d14da4e9290d91e957a777504b9abfbcbb852a030f03e815a9",
        (".ttf",),
    ),
    DebianPackage(
        "fonts-dejavu-extra",
        "2.37-6",
        (FOLDER,),
        "1896d0d9ea187fb64d6317c524b0ac95145e8d92a76b4aae4f4468651fdb2541",
        (".ttf",),
    ),
)
LINE_HEIGHT = 56
PURPOSE = "drawing text images"


@functools.cache
def fonts(size: int) -> tuple[Any, ...]:
    """Return the 22 DejaVu fonts at `size` pixels, sorted by file name."""
    load = optional("PIL.ImageFont", PURPOSE)
    # Pillow's own layout: the other one depends on a library that may or may not be there.
    basic = load.Layout.BASIC
    return tuple(load.truetype(str(p), size, layout_engine=basic) for p in font_files())


def font_files(report: Report = quiet) -> list[Path]:
    """Return the 22 font files, sorted by name."""
    files = [p for package in FONTS for p in fetch_debian(package, report).rglob("*.ttf")]
    return sorted(files, key=lambda path: path.name)


def words(evaluation: bool) -> tuple[str, ...]:
    """Return the vocabulary of the evaluation set, or the other half for calibration."""
    return vocabulary()[0 if evaluation else 1 :: 2]


def draw_text(r: RandomState, choice: tuple[str, ...]) -> str:
    """Return one to three random words, with a number after them in 40 % of cases."""
    text = " ".join(choice[i] for i in r.randint(0, len(choice), r.randint(1, 4)))
    return text + ("" if r.rand() < 0.6 else f" {r.randint(10, 9999)}")


def draw_line(text: str, r: RandomState) -> Any:
    """Return a grey image, 56 pixels high, of `text`: rotated, blurred and noisy at random."""
    pil = optional("PIL.Image", PURPOSE)
    font = fonts(36)[r.randint(len(fonts(36)))]
    left, top, right, bottom = font.getbbox(text)
    width = int(right - left) + 16
    paper, ink = int(r.randint(150, 256)), int(r.randint(0, 90))
    image = pil.new("L", (width, LINE_HEIGHT), paper)
    place = (8 - left, LINE_HEIGHT / 2 - (top + bottom) / 2)
    optional("PIL.ImageDraw", PURPOSE).Draw(image).text(place, text, font=font, fill=ink)
    image = image.rotate(r.uniform(-1.5, 1.5), fillcolor=paper, resample=pil.BICUBIC)
    if (shrink := int(r.choice([1, 1, 2, 3]))) > 1:
        small = image.resize((max(1, width // shrink), LINE_HEIGHT // shrink))
        image = small.resize((width, LINE_HEIGHT), pil.BICUBIC)
    noisy = np.asarray(image, np.float32) + r.randn(LINE_HEIGHT, width) * r.uniform(0, 22)
    return pil.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def line_input(image: Any, width: int) -> NDArray[np.float32]:
    """Return (1, 3, 48, width): the image 48 pixels high, grey on the right where it ends."""
    pil = optional("PIL.Image", PURPOSE)
    used = min(width, round(48 * image.width / image.height))
    pixels = image.resize((used, 48), pil.BICUBIC).convert("RGB")
    out = np.zeros((1, 3, 48, width), np.float32)
    out[0, :, :, :used] = normalised(pixels)
    return out


def draw_page(r: RandomState, size: int) -> NDArray[np.float32]:
    """Return (1, 3, size, size): a page with two to nine lines of calibration words."""
    pil = optional("PIL.Image", PURPOSE)
    tint = tuple(int(c) for c in r.randint(170, 256, 3))
    page = pil.new("RGB", (size, size), tint)
    pen = optional("PIL.ImageDraw", PURPOSE).Draw(page)
    y = int(r.randint(5, 60))
    for _ in range(r.randint(2, 10)):
        height = int(r.choice([14, 18, 24, 36]))
        font = fonts(height)[r.randint(len(fonts(height)))]
        ink = tuple(int(c) for c in r.randint(0, 110, 3))
        pen.text((int(r.randint(5, 120)), y), draw_text(r, words(False)), font=font, fill=ink)
        y += height + int(r.randint(8, 50))
    page = page.rotate(r.uniform(-4, 4), fillcolor=tint, resample=pil.BICUBIC)
    noisy = np.asarray(page, np.float32) + r.randn(size, size, 1) * r.uniform(0, 12)
    return normalised(np.clip(noisy, 0, 255))[None]


def normalised(pixels: Any) -> NDArray[np.float32]:
    """Return pixels (height, width, 3) of 0..255 as (3, height, width) of -1..1."""
    x: NDArray[np.float32] = np.asarray(pixels, np.float32).transpose(2, 0, 1)
    return (x / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


@functools.cache
def labelled_lines() -> tuple[tuple[NDArray[np.float32], str], ...]:
    """Return the 300 inputs (1, 3, 48, 320) of the evaluation set with their texts."""
    r = RandomState(1)
    lines = []
    for _ in range(300):
        text = draw_text(r, words(True))
        lines.append((line_input(draw_line(text, r), 320), text))
    return tuple(lines)
