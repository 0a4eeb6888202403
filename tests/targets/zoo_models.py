"""The real models that every target is tried on: one in CI, the others with -m devices."""

import pytest

SMALL_AND_OTHERS = [
    pytest.param("ppocr-cls", marks=pytest.mark.zoo),
    *(
        pytest.param(name, marks=pytest.mark.devices)
        for name in ("ppocr-rec", "ppocr-det", "minilm", "efficientnet-lite0", "vit-saliency")
    ),
]
