"""Calibration: example inputs, and the statistics that passes gather from activations.

Statistics are streaming: each `add` takes a (features, positions) matrix and keeps only sums.
Products run in float32 blocks and are summed up in float64, in the order they arrive, so the
same calibration gives the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tilewright.errors import UnusableInput
from tilewright.graph import static_shape
from tilewright.threads import spread_over_cores

# Conversions that lose nothing a model can see; any other difference of dtypes is an error.
_CONVERSIONS = {("float64", "float32"), ("int32", "int64")}
# Fewer columns than this are gathered before they are multiplied: small products are slow.
_BLOCK_COLUMNS = 2048
# Features that one core multiplies at a time.
_BLOCK_ROWS = 384


@dataclass(frozen=True, eq=False)
class Calibration:
    """Feeds of one inference each, in order, read-only: from `from_arrays` or `from_feeds`."""

    _feeds: tuple[Mapping[str, np.ndarray], ...]

    def __post_init__(self) -> None:
        """Raise UnusableInput for what is no tuple of feeds, such as arrays by name."""
        if not isinstance(self._feeds, tuple):
            raise UnusableInput(
                f"Calibration is set up with a {type(self._feeds).__name__}, which nobody has "
                "checked against a model. Give Calibration.from_arrays(arrays, graph.inputs)."
            )

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], inputs: Sequence[gs.Variable]
    ) -> "Calibration":
        """Cut stacked feeds into one feed a sample.

        `arrays[name]` is (samples, ...). Where the model's input is (1, ...) axis 0 is the
        samples axis and a feed is a[i:i+1]; else a feed is a[i], of the input's whole shape.
        float64 becomes float32 and int32 becomes int64 where the model wants it.
        Raises UnusableInput where names, shapes, dtypes, counts or values do not fit.
        """
        _check_inputs(inputs)
        _check_names(arrays, inputs)
        stacked = {str(i.name): _checked(np.asarray(arrays[i.name]), i) for i in inputs}
        counts = {name: len(values) for name, values in stacked.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f'"{name}" has {count}' for name, count in counts.items())
            raise UnusableInput(
                f"Calibration arrays hold different numbers of samples: {found}. "
                "Stack the same samples in every array."
            )
        samples = next(iter(counts.values()), 0)
        if not samples:
            raise _no_samples()
        keeps_axis = {str(i.name): has_batch_of_one(i) for i in inputs}
        return cls(
            tuple(
                {n: a[i : i + 1] if keeps_axis[n] else a[i, ...] for n, a in stacked.items()}
                for i in range(samples)
            )
        )

    @classmethod
    def from_feeds(
        cls, feeds: Sequence[Mapping[str, np.ndarray]], inputs: Sequence[gs.Variable]
    ) -> "Calibration":
        """Take feeds as the model reads them, one inference each.

        Arrays may be views that share memory. Raises UnusableInput where there are none, and
        where names, shapes, dtypes or values do not fit.
        """
        _check_inputs(inputs)
        if not feeds:
            raise _no_samples()
        for feed in feeds:
            _check_names(feed, inputs)
            for tensor in inputs:
                found, wanted = np.shape(feed[tensor.name]), static_shape(tensor)
                if wanted is not None and found != wanted:
                    raise UnusableInput(
                        f'Calibration array "{tensor.name}" has shape {found}, but the model '
                        f"reads {wanted}. Give each inference arrays of the inputs' shapes."
                    )
        return cls(tuple({str(i.name): _usable(f[i.name], i) for i in inputs} for f in feeds))

    @property
    def samples(self) -> int:
        """Number of inferences."""
        return len(self._feeds)

    def feeds(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the feeds of each inference."""
        for feed in self._feeds:
            yield dict(feed)

    def first(self, samples: int) -> "Calibration":
        """Return up to so many samples."""
        return Calibration(self._feeds[:samples])

    def are_alike(self) -> bool:
        """Say whether all samples are the same: they say no more than one does."""
        first, *others = self._feeds
        return all(np.array_equal(each[name], first[name]) for each in others for name in first)

    def held_out(self, every: int) -> tuple["Calibration", "Calibration"]:
        """Return the samples without one of every so many, and those; a lone one in both."""
        rest = tuple(feed for i, feed in enumerate(self._feeds) if (i + 1) % every)
        held = self._feeds[every - 1 :: every]
        return Calibration(rest or self._feeds), Calibration(held or self._feeds)


class CrossGram:
    """Sums X Y^T and both column sums over matrices of equally many columns."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.columns = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_columns = 0
        self._product: np.ndarray | None = None
        self._sums: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in (features, columns) and (other features, columns)."""
        self._waiting.append((x, y))
        self._waiting_columns += x.shape[1]
        self.columns += x.shape[1]
        if self._waiting_columns >= _BLOCK_COLUMNS:
            self._multiply()

    @property
    def product(self) -> np.ndarray:
        """X Y^T in float64."""
        self._multiply()
        assert self._product is not None, "a Gram is read before anything was added"
        return self._product

    @property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums over columns of X and of Y, float64."""
        self._multiply()
        assert self._sums is not None, "sums are read before anything was added"
        return self._sums

    def _multiply(self) -> None:
        if not self._waiting:
            return
        x = np.concatenate([pair[0] for pair in self._waiting], axis=1)
        y = np.concatenate([pair[1] for pair in self._waiting], axis=1)
        # X X^T is rounded otherwise where Y is another array, and least squares magnify that.
        y = x if np.array_equal(x, y) else y
        self._waiting, self._waiting_columns = [], 0
        if self._product is None or self._sums is None:
            self._product = np.zeros((len(x), len(y)))
            self._sums = (np.zeros(len(x)), np.zeros(len(y)))
        self._product += _product(x, y)
        if not np.isfinite(self._product).all():
            raise UnusableInput(
                "The network's activations on the calibration data are so large that their "
                "products overflow. Give inputs of the size that the model was trained on."
            )
        self._sums[0][:] += x.sum(axis=1, dtype=np.float64)
        self._sums[1][:] += y.sum(axis=1, dtype=np.float64)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return X Y^T; of X X^T one half is computed. What overflows does so without a warning."""
    starts = range(0, len(x), _BLOCK_ROWS)

    def rows(start: int) -> np.ndarray:
        stop = start + _BLOCK_ROWS
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(x[start:stop] @ (x[:stop] if y is x else y).T)

    parts = spread_over_cores(rows, starts)
    if y is not x:
        return np.concatenate(parts)
    whole = np.zeros((len(x), len(x)), x.dtype)
    for start, part in zip(starts, parts, strict=True):
        whole[start : start + _BLOCK_ROWS, : part.shape[1]] = part
    lower = np.tril(whole)
    return lower + np.tril(lower, -1).T


class Gram:
    """Sums X X^T over matrices of (features, columns)."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._cross = CrossGram()

    def add(self, x: np.ndarray) -> None:
        """Take in (features, columns)."""
        self._cross.add(x, x)

    @property
    def columns(self) -> int:
        """How many columns were added."""
        return self._cross.columns

    @property
    def product(self) -> np.ndarray:
        """X X^T in float64."""
        return self._cross.product

    @property
    def sums(self) -> np.ndarray:
        """Sum over columns, float64."""
        return self._cross.sums[0]


class Moments:
    """Mean and variance of each feature over matrices of (features, columns)."""

    def __init__(self) -> None:
        """Start from nothing."""
        self.columns = 0
        self._mean: np.ndarray | None = None
        self._squares: np.ndarray | None = None

    def add(self, x: np.ndarray) -> None:
        """Take in (features, columns).

        Chan, Golub & LeVeque, "Updating formulae" (1979): exact where E[x^2] - E[x]^2 cancels.
        """
        wide = x.astype(np.float64)
        count = x.shape[1]
        if not count:
            return
        mean = wide.mean(axis=1)
        squares = np.square(wide - mean[:, None]).sum(axis=1)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = mean, squares
        else:
            shift = mean - self._mean
            total = self.columns + count
            self._squares = self._squares + squares + shift**2 * (self.columns * count / total)
            self._mean = self._mean + shift * (count / total)
        self.columns += count

    @property
    def mean(self) -> np.ndarray:
        """Mean of each feature, float64."""
        assert self._mean is not None, "moments are read before anything was added"
        return self._mean

    @property
    def variance(self) -> np.ndarray:
        """Population variance of each feature, float64."""
        assert self._squares is not None, "moments are read before anything was added"
        return self._squares / self.columns


class Ranges:
    """Least and greatest value of each feature over matrices of (features, columns)."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._range: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray) -> None:
        """Take in (features, columns)."""
        if not x.shape[1]:
            return
        low, high = x.min(axis=1), x.max(axis=1)
        if self._range is not None:
            low = np.minimum(low, self._range[0])
            high = np.maximum(high, self._range[1])
        self._range = low, high

    @property
    def low(self) -> np.ndarray:
        """Least value of each feature."""
        assert self._range is not None, "ranges are read before anything was added"
        return self._range[0]

    @property
    def high(self) -> np.ndarray:
        """Greatest value of each feature."""
        assert self._range is not None, "ranges are read before anything was added"
        return self._range[1]


def _no_samples() -> UnusableInput:
    return UnusableInput(
        "Calibration data holds no samples. Give at least one; "
        "a few hundred typical inputs are best."
    )


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Sequence):
        raise UnusableInput(
            f"Calibration data is checked against a model's inputs, but a "
            f"{type(inputs).__name__} is given for them. Give graph.inputs."
        )


def _check_names(arrays: Mapping[str, np.ndarray], inputs: Sequence[gs.Variable]) -> None:
    wanted, given = {str(i.name) for i in inputs}, set(arrays)
    if missing := sorted(wanted - given):
        raise UnusableInput(
            f"Calibration data has no array for input {_quoted(missing)}; "
            f"it holds {_quoted(sorted(given)) or 'nothing'}. "
            f"Name the arrays like the model's inputs: {_quoted(sorted(wanted))}."
        )
    if extra := sorted(given - wanted):
        raise UnusableInput(
            f"Calibration data holds {_quoted(extra)}, which the model does not read. "
            f"Its inputs are {_quoted(sorted(wanted))}: remove or rename the rest."
        )


def _checked(values: np.ndarray, tensor: gs.Variable) -> np.ndarray:
    batched = has_batch_of_one(tensor)
    expected = list(tensor.shape)[1:] if batched else list(tensor.shape or [])
    found = list(values.shape[1:])
    fits = values.ndim > 0 and len(expected) == len(found)
    if tensor.shape is not None and not (
        fits and all(not _is_size(e) or e == f for e, f in zip(expected, found, strict=True))
    ):
        shape = ", ".join(str(d) for d in ["samples", *expected])
        raise UnusableInput(
            f'Calibration array "{tensor.name}" has shape {values.shape}, but the model reads '
            f"({shape}). Stack one sample after the other along axis 0."
        )
    return _usable(values, tensor)


def _usable(values: np.ndarray, tensor: gs.Variable) -> np.ndarray:
    """Return values in the dtype that the model reads, read-only. Raises UnusableInput."""
    values = _with_dtype(np.asarray(values), tensor)
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise UnusableInput(
            f'Calibration array "{tensor.name}" holds {bad} values that are NaN or Inf, of '
            f"{values.size}. Remove those samples."
        )
    values = values.view()
    values.flags.writeable = False
    return values


def _with_dtype(values: np.ndarray, tensor: gs.Variable) -> np.ndarray:
    if tensor.dtype is None or values.dtype == np.dtype(tensor.dtype):
        return values
    wanted = np.dtype(tensor.dtype)
    if values.dtype.newbyteorder("=") == wanted:
        return values.astype(wanted)
    if (values.dtype.name, wanted.name) not in _CONVERSIONS:
        raise UnusableInput(
            f'Calibration array "{tensor.name}" is {values.dtype.name}, but the model reads '
            f"{wanted.name}. Convert it with .astype(np.{wanted.name}) if that loses nothing."
        )
    # A float64 beyond float32 becomes Inf, which the check for finite values then reports.
    with np.errstate(over="ignore"):
        return values.astype(wanted)


def has_batch_of_one(tensor: gs.Variable) -> bool:
    """Say whether an input is (1, ...): samples are then stacked along that axis."""
    return bool(tensor.shape) and tensor.shape[0] == 1


def _is_size(dimension: object) -> bool:
    return isinstance(dimension, int | np.integer)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
