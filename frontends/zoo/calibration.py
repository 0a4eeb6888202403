"""Real, unlabelled inputs for calibration: never a sample that an evaluation task uses."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.errors import UnknownName, UnusableInput
from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.catalogue import MODELS
from tilewright.frontends.zoo.feeds import classifier_input, saliency_input
from tilewright.frontends.zoo.run_dense import open_model
from tilewright.frontends.zoo.stamps import (
    composite,
    on_white,
    other_stamps,
    photos,
    square_crop,
)
from tilewright.frontends.zoo.text_images import (
    draw_line,
    draw_page,
    draw_text,
    line_input,
    words,
)
from tilewright.frontends.zoo.tokens import calibration_windows, sentence_feeds
from tilewright.frontends.zoo.wordnet import unlabelled_definitions

Feeds = dict[str, NDArray[np.generic]]


def calibration(name: str, samples: int, seed: int = 0) -> Feeds:
    """Return `samples` feeds of a zoo model in its default dims, stacked along axis 0.

    One feed is {input: array[i : i + 1]}. The same name, number and seed give the same arrays.
    Raises UnknownName, and UnusableInput when the data cannot be had.
    """
    if name not in MODELS:
        raise UnknownName("zoo model", name, MODELS)
    if samples < 1:
        raise UnusableInput(
            f"zoo: {samples} calibration samples were asked for {name}. Give 1 or more."
        )
    return MAKERS[name](samples, RandomState(seed))


def text_lines(samples: int, r: RandomState) -> Feeds:
    """Draw lines from the half of the words that the evaluation never uses."""
    return {"x": stack(lambda: line_input(draw_calibration_line(r), 320), samples)}


def pages(samples: int, r: RandomState) -> Feeds:
    """Draw pages of several lines."""
    return {"x": stack(lambda: draw_page(r, 480), samples)}


def text_strips(samples: int, r: RandomState) -> Feeds:
    """Draw lines, half of them upside down."""

    def strip() -> NDArray[np.float32]:
        line = draw_calibration_line(r)
        return line_input(line.rotate(180) if r.rand() < 0.5 else line, 192)

    return {"x": stack(strip, samples)}


def composites(samples: int, r: RandomState) -> Feeds:
    """Paste stamps that no task uses onto the photos that no task uses."""

    def image() -> NDArray[np.float32]:
        pixels, _ = composite(pick(other_stamps(), r), pick(photos(evaluation=False), r), r)
        return saliency_input(pixels)

    return {"input_image": stack(image, samples)}


def things_and_photos(samples: int, r: RandomState) -> Feeds:
    """Take stamps on white and photo crops in turn, half of them mirrored."""
    counter = iter(range(samples))

    def image() -> NDArray[np.float32]:
        if next(counter) % 2:
            pixels = np.asarray(square_crop(pick(photos(evaluation=False), r), r, 224, 0.3))
        else:
            pixels = on_white(pick(other_stamps(), r), 224)
        return classifier_input(pixels[:, ::-1] if r.rand() < 0.5 else pixels)

    return {"input": stack(image, samples)}


def definitions(samples: int, r: RandomState) -> Feeds:
    """Take definitions that are in neither part of the labelled ones, each at most once."""
    texts = unlabelled_definitions()
    chosen = r.permutation(len(texts))[np.arange(samples) % len(texts)]
    return dict(sentence_feeds([texts[i] for i in chosen]))


def gloss_windows(samples: int, r: RandomState) -> Feeds:
    """Take windows of 256 tokens from a part of the glosses that perplexity never reads."""
    return {"input_ids": calibration_windows(samples, r)}


def decode_steps(samples: int, r: RandomState) -> Feeds:
    """Take the step after `past` tokens of gloss windows, with the keys and values so far.

    Attention is causal, so those are the first rows of what the prefill graph returns.
    """
    past = MODELS["smollm2-decode"].dims["past"]
    run = open_model(get("smollm2"))
    windows = calibration_windows(samples, r)
    steps = []
    for window in windows:
        present = run({"input_ids": window[None]})
        step: Feeds = {
            name.replace("present", "past"): values[:, :, :past]
            for name, values in present.items()
            if name != "logits"
        }
        step["input_ids"] = window[None, past : past + 1]
        step["position_ids"] = np.array([[past]], np.int64)
        steps.append(step)
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}


def draw_calibration_line(r: RandomState) -> Any:
    """Draw one line of calibration words."""
    return draw_line(draw_text(r, words(evaluation=False)), r)


def pick(choice: tuple[Any, ...], r: RandomState) -> Any:
    """Return one element."""
    return choice[r.randint(len(choice))]


def stack(make: Callable[[], NDArray[np.float32]], samples: int) -> NDArray[np.float32]:
    """Make `samples` arrays of batch 1 and join them along axis 0."""
    return np.concatenate([make() for _ in range(samples)])


MAKERS: dict[str, Callable[[int, RandomState], Feeds]] = {
    "ppocr-rec": text_lines,
    "ppocr-det": pages,
    "ppocr-cls": text_strips,
    "vit-saliency": composites,
    "minilm": definitions,
    "efficientnet-lite0": things_and_photos,
    "smollm2": gloss_windows,
    "smollm2-decode": decode_steps,
}
