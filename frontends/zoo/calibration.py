"""Real, unlabelled inputs for calibration: never a sample that an evaluation task uses."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.catalogue import MODELS
from tilewright.frontends.zoo.feeds import classifier_input, saliency_input
from tilewright.frontends.zoo.run_dense import open_model
from tilewright.frontends.zoo.scenes import open_scene, scenes
from tilewright.frontends.zoo.stamps import (
    composite,
    on_colour,
    other_stamps,
    photos,
    square_crop,
    tilted,
)
from tilewright.frontends.zoo.text_images import (
    draw_line,
    draw_page,
    draw_text,
    line_input,
    words,
)
from tilewright.frontends.zoo.tokens import WINDOW, calibration_windows, sentence_feeds
from tilewright.frontends.zoo.wordnet import unlabelled_definitions

Feed = dict[str, NDArray[np.generic]]

# Tokens from one decode step to the next that a window gives: neighbours are much alike.
_STRIDE = 4


def calibration(name: str, samples: int, seed: int = 0) -> list[Feed]:
    """Return `samples` feeds of a zoo model in its default dims, each of one inference.

    The same name, number and seed give the same arrays; smollm2's on one version of Python.
    Raises UnknownName, and UnusableInput when the data cannot be had.
    """
    if name not in MODELS:
        raise UnknownName("zoo model", name, MODELS)
    if samples < 1:
        raise UnusableInput(
            f"zoo: {samples} calibration samples were asked for {name}. Give 1 or more."
        )
    return list(islice(MAKERS[name](samples, RandomState(seed)), samples))


def text_lines(samples: int, r: RandomState) -> Iterator[Feed]:
    """Draw lines from the half of the words that the evaluation never uses."""
    for _ in range(samples):
        yield {"x": line_input(draw_calibration_line(r), 320)}


def pages(samples: int, r: RandomState) -> Iterator[Feed]:
    """Draw pages of several lines."""
    for _ in range(samples):
        yield {"x": draw_page(r, 480)}


def text_strips(samples: int, r: RandomState) -> Iterator[Feed]:
    """Draw lines, half of them upside down."""
    for _ in range(samples):
        line = draw_calibration_line(r)
        yield {"x": line_input(line.rotate(180) if r.rand() < 0.5 else line, 192)}


def composites(samples: int, r: RandomState) -> Iterator[Feed]:
    """Paste stamps that no task uses onto the photos that no task uses."""
    for _ in range(samples):
        pixels, _mask = composite(pick(other_stamps(), r), background(r), r)
        yield {"input_image": saliency_input(pixels)}


def things_and_photos(samples: int, r: RandomState) -> Iterator[Feed]:
    """Take stamps on white, stamps on a colour, crops of photos, or stamps on photos.

    Of each about as many, half of them mirrored; sizes and angles vary.
    """
    for _ in range(samples):
        kind = r.randint(4)
        if kind < 2:
            colour = tuple(r.randint(0, 256, 3).tolist()) if kind else (255, 255, 255)
            image = on_colour(tilted(pick(other_stamps(), r), r), colour, r.uniform(1.0, 1.5))
            pixels = np.asarray(image.resize((224, 224)))
        elif kind == 2:
            pixels = np.asarray(square_crop(background(r), r, 224, 0.4))
        else:
            size = int(r.randint(100, 220))
            pixels, _mask = composite(pick(other_stamps(), r), background(r), r, size)
        yield {"input": classifier_input(pixels[:, ::-1] if r.rand() < 0.5 else pixels)}


def background(r: RandomState) -> Any:
    """Return one of all photos that no task uses."""
    photo = pick((*photos(evaluation=False), *scenes()), r)
    return open_scene(photo) if isinstance(photo, bytes) else photo


def definitions(samples: int, r: RandomState) -> Iterator[Feed]:
    """Take definitions that are in neither part of the labelled ones, each at most once."""
    texts = unlabelled_definitions()
    chosen = r.permutation(len(texts))[np.arange(samples) % len(texts)]
    stacked = sentence_feeds([texts[i] for i in chosen])
    for index in range(samples):
        yield {name: ids[index : index + 1] for name, ids in stacked.items()}


def token_windows(samples: int, r: RandomState) -> Iterator[Feed]:
    """Take windows of 256 tokens from parts of texts that perplexity never reads."""
    for window in calibration_windows(samples, r):
        yield {"input_ids": window[None]}


def decode_steps(samples: int, r: RandomState) -> Iterator[Feed]:
    """Take a step every `_STRIDE` tokens of windows, after the keys and values before it.

    Attention is causal, so those are rows of what the prefill graph returns. The steps of a
    window share its arrays, so many steps take little memory.
    """
    past = MODELS["smollm2-decode"].dims["past"]
    run = open_model(get("smollm2"))
    steps = range(past, WINDOW, _STRIDE)
    for window in calibration_windows(-(-samples // len(steps)), r):
        present = run({"input_ids": window[None]})
        del present["logits"]
        for step in steps:
            feed: Feed = {
                name.replace("present", "past"): values[:, :, step - past : step]
                for name, values in present.items()
            }
            feed["input_ids"] = window[None, step : step + 1]
            feed["position_ids"] = np.array([[step]], np.int64)
            yield feed


def draw_calibration_line(r: RandomState) -> Any:
    """Draw one line of calibration words."""
    return draw_line(draw_text(r, words(evaluation=False)), r)


def pick(choice: tuple[Any, ...], r: RandomState) -> Any:
    """Return one element."""
    return choice[r.randint(len(choice))]


MAKERS: dict[str, Callable[[int, RandomState], Iterator[Feed]]] = {
    "ppocr-rec": text_lines,
    "ppocr-det": pages,
    "ppocr-cls": text_strips,
    "vit-saliency": composites,
    "minilm": definitions,
    "efficientnet-lite0": things_and_photos,
    "smollm2": token_windows,
    "smollm2-decode": decode_steps,
}
