"""Import packages that only the zoo's evaluation data needs (the extra `zoo`)."""

import importlib
from typing import Any

from tilewright.errors import UnusableInput


def optional(module: str, purpose: str) -> Any:
    """Return an imported module; raise UnusableInput with the remedy when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"PIL": "Pillow"}.get(module.split(".")[0], module.split(".")[0])
        raise UnusableInput(
            f"zoo: {purpose} needs {package}, which is not installed. "
            f"Install it with: pip install 'tilewright[zoo]'"
        ) from error
