"""Turn images into the inputs of the zoo's vision models, and read what they carry."""

import functools

import numpy as np
import onnx
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.cache import Report
from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.stamps import photos, square_crop

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225])
OCR_CLASSES = 18710


def saliency_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (1, 3, 224, 224) for vit-saliency from pixels (224, 224, 3)."""
    x = (pixels / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    return np.asarray(x.transpose(2, 0, 1)[None], np.float32)


def classifier_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (1, 3, 224, 224) for efficientnet-lite0 from pixels (224, 224, 3)."""
    x = (pixels.astype(np.float32) - np.float32(127)) / np.float32(128)
    return x.transpose(2, 0, 1)[None]


@functools.cache
def photo_crops() -> tuple[NDArray[np.float32], ...]:
    """Return 151 inputs for efficientnet-lite0: squares of the evaluation photos."""
    r = RandomState(2)
    below = photos(evaluation=True)
    return tuple(
        classifier_input(np.asarray(square_crop(below[i % len(below)], r, 224, smallest=0.3)))
        for i in range(151)
    )


def ocr_characters(report: Report) -> list[str]:
    """Return the character of each of ppocr-rec's classes; class 0 is the blank.

    The file lists all but the blank and the space, which comes last.
    """
    model = onnx.load(get("ppocr-rec", report))
    listed = {p.key: p.value for p in model.metadata_props}["character"].split("\n")
    return ["", *listed, *" " * (OCR_CLASSES - 1 - len(listed))]
