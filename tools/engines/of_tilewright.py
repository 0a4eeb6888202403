"""An artifact of ours as an engine to be timed."""

from tilewright.protocol import Executable
from tilewright.tools.load_artifact import load_any
from tilewright.version import VERSION


def version() -> str:
    """Return the engine's version."""
    return VERSION


def open_engine(path: str, threads: int) -> Executable:
    """Open an artifact, or a model of any kind that `tilewright run` takes."""
    return load_any(path, threads or None)
