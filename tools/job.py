"""Job: what a user asks `compile` for, checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.cache import cache_folder
from tilewright.errors import UnusableInput
from tilewright.timings import Timings, Tuning
from tilewright.tools.read_model import ZOO

# For --tune: how many ways to run a layer are tried, and seconds to do it in.
_TUNED = {"quick": (4, 60.0), "full": (16, 900.0)}
TUNE = ("0", *_TUNED)


@dataclass(frozen=True)
class Job:
    """What to compile, and how.

    `sparsity` None leaves the pipeline's own choice, `precision` None the target's.
    """

    model: str
    target: str = "cpu"
    sparsity: float | None = None
    precision: str | None = None
    calibration: Path | Mapping[str, np.ndarray] | None = None
    pipeline: str | None = None
    plan: Path | None = None
    dims: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    mask: str | None = None
    threads: int | None = None
    device: str | None = None
    seed: int = 0
    tune: str = "0"
    output: Path | None = None
    evaluate: bool = True
    estimate: bool = True

    def __post_init__(self) -> None:
        """Raise UnusableInput where a number is none or makes no sense."""
        for name, value, least in (("threads", self.threads, 1), ("seed", self.seed, 0)):
            if value is not None and not (isinstance(value, int) and value >= least):
                raise UnusableInput(
                    f"{name} is {value!r}; give a whole number from {least} on."
                )
        if self.sparsity is not None and not isinstance(self.sparsity, int | float):
            raise UnusableInput(f"sparsity is {self.sparsity!r}; give a number, such as 0.6.")
        if self.tune not in TUNE:
            raise UnusableInput(f"tune is {self.tune!r}; give one of {', '.join(TUNE)}.")
        for name, sizes in self._sizes().items():
            if not sizes or not all(isinstance(n, int) and n >= 1 for n in sizes):
                raise UnusableInput(
                    f"The size of {name} is {_listed(sizes)}; give a whole number from 1 on, "
                    "or several."
                )
            if len(set(sizes)) < len(sizes):
                raise UnusableInput(f"The sizes of {name} are {_listed(sizes)}: one twice.")
        if self.mask is not None and not self.open_dims:
            raise UnusableInput(
                f"--mask {self.mask}: there is nothing to choose by it. Give several sizes of "
                "the dimension that it masks, such as --dim sequence=128,64,32."
            )

    @property
    def first_dims(self) -> dict[str, int]:
        """The sizes of the calibration data, of model.onnx and of what is reported."""
        return {name: sizes[0] for name, sizes in self._sizes().items()}

    @property
    def open_dims(self) -> dict[str, tuple[int, ...]]:
        """The dimensions that stay open between several sizes."""
        return {name: sizes for name, sizes in self._sizes().items() if len(sizes) > 1}

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, sizes in self.dims.items():
            found[name] = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
        return found

    @property
    def folder(self) -> Path:
        """Where the artifact goes: "ppocr-rec.cpu.tw" unless `output` says otherwise."""
        if self.output is not None:
            return self.output
        stem = self.model.removeprefix(ZOO) if self.model.startswith(ZOO) else self.model
        return Path(f"{Path(stem).stem}.{Path(self.target).stem}.tw")

    def tuning(self, threads: int) -> Tuning | None:
        """Return what may be spent on measuring. Raises UnusableInput without a database."""
        if self.tune not in _TUNED:
            return None
        ways, seconds = _TUNED[self.tune]
        timings = Timings(cache_folder() / "timings.sqlite")
        timings.check()
        return Tuning(ways, seconds, threads, timings)


def _listed(sizes: Sequence[object]) -> str:
    return ", ".join(map(repr, sizes)) or "missing"
