"""PP-OCRv6 small: text recognizer, detector and direction classifier, as shipped.

Cui et al., "PP-OCR" (2020-2026). Input pixels are (value / 255 - 0.5) / 0.5.
"""

import shutil
from pathlib import Path

from tilewright.cache import Report
from tilewright.frontends.zoo.packages import Wheel, fetch_wheel

FILES = {
    "ppocr-rec": "rapidocr/models/PP-OCRv6_rec_small.onnx",
    "ppocr-det": "rapidocr/models/PP-OCRv6_det_small.onnx",
    "ppocr-cls": "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
}
WHEEL = Wheel(
    "rapidocr",
    "3.10.0",
    {
        FILES["ppocr-rec"]: "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        FILES["ppocr-det"]: "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        FILES["ppocr-cls"]: "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    },
)


def build(folder: Path, report: Report) -> None:
    """Copy the three models into `folder`."""
    package = fetch_wheel(WHEEL, report)
    for name, path in FILES.items():
        shutil.copyfile(package / path, folder / f"{name}.onnx")
