"""WordNet 3.0 nouns: definitions, lexicographer classes, hypernyms.

Miller, "WordNet: a lexical database for English" (1995). The file format is wndb(5WN).
"""

import functools
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from tilewright.cache import Report, quiet
from tilewright.frontends.zoo.packages import DebianPackage, fetch_debian

NOUNS = "usr/share/wordnet/data.noun"
PACKAGE = DebianPackage(
    "wordnet-base",
    "1:3.0-37",
    (NOUNS,),
    "568951b8d62a98d42f0b55a2844dd2c5531e2630b1630714f5937aef8deb1614",
)
# Numbers 3 to 28 of lexnames(5WN).
LEXNAMES = (
    "Tops",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
)
# Pointers to the synset above, of a class and of an instance.
IS_A = ("@", "@i")
PER_CLASS = 120
SMALLEST_CLASS = 300


@dataclass(frozen=True)
class Synset:
    """A set of synonyms with their class, the synsets right above it, and their gloss."""

    words: tuple[str, ...]
    lexname: str
    hypernyms: tuple[int, ...]
    gloss: str


@dataclass(frozen=True)
class Definitions:
    """Definitions with the index of their class in `classes`."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def noun_file(report: Report = quiet) -> str:
    """Return the text of WordNet's noun file."""
    path = fetch_debian(PACKAGE, report) / NOUNS
    return path.read_text(encoding="utf-8", errors="ignore")


@functools.cache
def synsets() -> dict[int, Synset]:
    """Return all noun synsets by their offset in the file."""
    lines = noun_file().splitlines()
    # Lines of the licence at the top begin with two spaces.
    return dict(parse_synset(line) for line in lines if not line.startswith("  "))


def parse_synset(line: str) -> tuple[int, Synset]:
    """Read one line: offset, class, words (hexadecimal count), pointers, | gloss."""
    fields, _, gloss = line.partition("|")
    part = fields.split()
    words = int(part[3], 16)
    first = 4 + 2 * words
    pointers = [part[first + 1 + 4 * i : first + 5 + 4 * i] for i in range(int(part[first]))]
    above = tuple(int(at) for kind, at, pos, _ in pointers if pos == "n" and kind in IS_A)
    lexname = LEXNAMES[int(part[1]) - 3]
    return int(part[0]), Synset(tuple(part[4:first:2]), lexname, above, gloss.strip())


@functools.cache
def synsets_of_word() -> dict[str, list[int]]:
    """Return lower-case word (spaces as underscores) -> offsets of its synsets."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for offset, synset in synsets().items():
        for word in synset.words:
            found[word.lower()].append(offset)
    return dict(found)


def ancestors(offset: int) -> set[int]:
    """Return a synset and everything above it."""
    found: set[int] = set()
    todo = [offset]
    while todo:
        if (at := todo.pop()) not in found:
            found.add(at)
            todo.extend(synsets()[at].hypernyms)
    return found


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Return the distinct words of 3 to 12 letters near the start of the file, sorted."""
    return tuple(sorted(set(re.findall(r"[A-Za-z]{3,12}", noun_file()[2000:400000]))))


@functools.cache
def definitions_by_class() -> dict[str, list[str]]:
    """Return class -> definitions without their example sentences, in file order."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for _, synset in sorted(synsets().items()):
        if synset.lexname != "Tops" and len(synset.gloss) > 20:
            definition = synset.gloss.split('; "')[0].split('"')[0].strip(" ;")
            found[synset.lexname].append(definition)
    return {name: found[name] for name in sorted(found) if len(found[name]) >= SMALLEST_CLASS}


@functools.cache
def labelled_definitions() -> Definitions:
    """Return 120 definitions of each of 24 classes, shuffled; the first two thirds train."""
    by_class = definitions_by_class()
    r = np.random.RandomState(0)
    texts, labels = [], []
    for label, definitions in enumerate(by_class.values()):
        for i in r.permutation(len(definitions))[:PER_CLASS]:
            texts.append(definitions[i])
            labels.append(label)
    order = r.permutation(len(texts))
    return Definitions(
        tuple(texts[i] for i in order), tuple(labels[i] for i in order), tuple(by_class)
    )


@functools.cache
def unlabelled_definitions() -> tuple[str, ...]:
    """Return all definitions whose text is in neither part of the labelled ones, sorted."""
    taken = set(labelled_definitions().texts)
    return tuple(sorted({t for ts in definitions_by_class().values() for t in ts} - taken))


@functools.cache
def gloss_text() -> str:
    """Return all glosses, one a line, in file order."""
    return "\n".join(synset.gloss for synset in synsets().values())
