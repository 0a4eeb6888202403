"""Real models and labelled data, built on this machine out of public packages.

>>> from tilewright.frontends import zoo
>>> path = zoo.get("minilm")
>>> feeds = zoo.calibration("minilm", samples=32)
>>> score = zoo.evaluate("wordnet-lexname", run)
"""

from tilewright.frontends.zoo.build import get
from tilewright.frontends.zoo.calibration import calibration
from tilewright.frontends.zoo.catalogue import MODELS, ZooModel
from tilewright.frontends.zoo.tasks import TASKS, Score, Task, evaluate

__all__ = [
    "MODELS",
    "TASKS",
    "Score",
    "Task",
    "ZooModel",
    "calibration",
    "evaluate",
    "get",
]
