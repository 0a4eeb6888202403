"""Turn texts into the token ids that the zoo's language models read."""

import ast
import functools
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tilewright.cache import quiet
from tilewright.errors import UnusableInput
from tilewright.frontends.zoo import minilm, smollm2
from tilewright.frontends.zoo.optional import optional
from tilewright.frontends.zoo.wordnet import gloss_text

SENTENCE_TOKENS = 64
WINDOW, WINDOWS = 256, 32
EVALUATION_CHARACTERS = 60_000
# The type of tokens in the checkpoint that stand for no text.
CONTROL = 3
SHORT_DOCS = 200  # characters, up to which a docstring is no text
PURPOSE = "turning text into tokens"


def sentence_feeds(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return minilm's inputs for texts, cut or padded to 64 tokens: two (texts, 64) arrays."""
    encoded = minilm_tokenizer().encode_batch(list(texts))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


@functools.cache
def minilm_tokenizer() -> Any:
    """Return minilm's own tokenizer, set to rows of 64 tokens."""
    load = optional("tokenizers", PURPOSE).Tokenizer.from_file
    tokenizer = load(str(minilm.tokenizer_file(quiet)))
    tokenizer.enable_truncation(SENTENCE_TOKENS)
    tokenizer.enable_padding(length=SENTENCE_TOKENS)
    return tokenizer


@functools.cache
def smollm2_tokenizer() -> Any:
    """Return smollm2's byte-level tokenizer, put together from the fields of its checkpoint."""
    library = optional("tokenizers", PURPOSE)
    fields = smollm2.checkpoint(quiet).fields
    names, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = library.Tokenizer(
        library.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges)
    )
    split = library.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [
            split.Digits(individual_digits=True),
            split.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = library.decoders.ByteLevel()
    special = [name for name, kind in zip(names, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(special)
    return tokenizer


@functools.cache
def text_windows(text: str) -> NDArray[np.int64]:
    """Return 32 windows of 256 tokens of the evaluation part of "glosses" or "python_docs"."""
    whole = gloss_text() if text == "glosses" else python_docs()
    ids = smollm2_tokenizer().encode(evaluation_part(whole)).ids
    windows = len(ids) // WINDOW
    return np.array(ids[: windows * WINDOW], np.int64).reshape(-1, WINDOW)[:WINDOWS]


def evaluation_part(whole: str) -> str:
    """Return 60,000 characters from the second third of a text."""
    start = len(whole) // 3
    return whole[start : start + EVALUATION_CHARACTERS]


def calibration_part(whole: str) -> str:
    """Return the lines of a text of which nothing is evaluated: the help has some twice."""
    start = len(whole) // 3
    before, _, _ = whole[:start].rpartition("\n")
    _, _, after = whole[start + EVALUATION_CHARACTERS :].partition("\n")
    evaluated = set(whole[len(before) : len(whole) - len(after)].split("\n")) - {""}
    rest = (*before.split("\n"), *after.split("\n"))
    return "\n".join(line for line in rest if line not in evaluated)


def calibration_windows(samples: int, r: RandomState) -> NDArray[np.int64]:
    """Return (samples, 256) windows from random lines of three kinds of text.

    They are glosses, this Python's help, and what its library says of itself.
    """
    parts = [calibration_part(text) for text in (gloss_text(), python_docs())]
    parts.append(module_docs())
    windows = [calibration_window(parts[r.randint(3)], r) for _ in range(samples)]
    return np.array(windows, np.int64)


def calibration_window(text: str, r: RandomState) -> list[int]:
    """Return 256 tokens from the next line after a random place."""
    # No token of English text is as long as 16 letters on average.
    letters = WINDOW * 16
    place = text.index("\n", int(r.randint(len(text) - 2 * letters))) + 1
    ids: list[int] = smollm2_tokenizer().encode(text[place : place + letters]).ids
    return ids[:WINDOW]


@functools.cache
def python_docs() -> str:
    """Return the help texts of this Python, paragraphs as single lines."""
    topics: dict[str, str] = optional("pydoc_data.topics", PURPOSE).topics
    return as_lines("\n\n".join(topics[name] for name in sorted(topics)))


@functools.cache
def module_docs() -> str:
    """Return what modules, classes and functions of this Python's library say of themselves.

    Paragraphs are single lines. Modules alone are read, no packages: they are enough, and the
    topics of the help are in one. Raises UnusableInput where there are no source files.
    """
    found = []
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                found += [ast.get_docstring(node) or ""]
    if not found:
        raise UnusableInput(
            f"zoo: calibration text is read out of Python's own library, but {folder} holds no "
            "source files. Use a Python that was installed with them."
        )
    return as_lines("\n\n".join(text for text in found if len(text) > SHORT_DOCS))


def as_lines(text: str) -> str:
    """Return a text with each paragraph on one line."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(re.sub(r"\s+", " ", paragraph).strip() for paragraph in paragraphs)
