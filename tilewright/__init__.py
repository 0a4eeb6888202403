"""tilewright: make neural networks small and fast on the device they run on.

>>> import tilewright
>>> run = tilewright.load("model.cpu.tw")
>>> outputs = run({"x": x})

The names below are imported when they are first used, so that `import tilewright` takes no
time. This file alone may reach into the folders above the core: it is the front door.
"""

import importlib
from typing import TYPE_CHECKING

from tilewright.version import VERSION

if TYPE_CHECKING:
    from tilewright.calibration import Calibration
    from tilewright.errors import TilewrightError
    from tilewright.facts import Fact
    from tilewright.frontends.arrays import read_arrays
    from tilewright.frontends.onnx_file import read_onnx
    from tilewright.frontends.torch_module import from_torch
    from tilewright.graph import Graph
    from tilewright.layout import Tile
    from tilewright.pipeline import Pipeline
    from tilewright.plan import Plan
    from tilewright.protocol import Context, Note, Outcome, Pass
    from tilewright.target import Target
    from tilewright.tools.api import compile
    from tilewright.tools.find_target import find_target, parse_pipeline
    from tilewright.tools.load_artifact import load

__version__ = VERSION

__all__ = [
    "Calibration",
    "Context",
    "Fact",
    "Graph",
    "Note",
    "Outcome",
    "Pass",
    "Pipeline",
    "Plan",
    "Target",
    "Tile",
    "TilewrightError",
    "__version__",
    "compile",
    "find_target",
    "from_torch",
    "load",
    "parse_pipeline",
    "read_arrays",
    "read_onnx",
]

_PLACES = {
    "Calibration": "tilewright.calibration",
    "Context": "tilewright.protocol",
    "Fact": "tilewright.facts",
    "Graph": "tilewright.graph",
    "Note": "tilewright.protocol",
    "Outcome": "tilewright.protocol",
    "Pass": "tilewright.protocol",
    "Pipeline": "tilewright.pipeline",
    "Plan": "tilewright.plan",
    "Target": "tilewright.target",
    "Tile": "tilewright.layout",
    "TilewrightError": "tilewright.errors",
    "compile": "tilewright.tools.api",
    "find_target": "tilewright.tools.find_target",
    "from_torch": "tilewright.frontends.torch_module",
    "load": "tilewright.tools.load_artifact",
    "parse_pipeline": "tilewright.tools.find_target",
    "read_arrays": "tilewright.frontends.arrays",
    "read_onnx": "tilewright.frontends.onnx_file",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f'module "tilewright" has no attribute "{name}"')
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
