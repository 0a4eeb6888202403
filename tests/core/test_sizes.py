"""Sizes: an inference runs at the smallest compiled size that holds it."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import UnusableInput
from tilewright.sizes import Sizes, all_choices, fit

CHOICES = all_choices({"batch": (2, 4), "length": (8, 3)})


def sizes_of(padded: tuple[str, ...] = ("batch", "length")) -> Sizes:
    """Of a model from (batch, length) numbers and a mask to (batch, length, 5) and (batch,)."""
    shapes = [(c["batch"], c["length"]) for c in CHOICES]
    found = Sizes.of(
        CHOICES,
        {"x": shapes, "mask": shapes, "bias": [(5,)] * 4},
        {"y": [(b, n, 5) for b, n in shapes], "total": [(b,) for b, _ in shapes]},
    )
    return replace(found, padded=padded)


class Doubling:
    """Doubles x, in each of five columns, and sums it; notes the shapes it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = feeds["x"]
        self.shapes.append(x.shape)
        assert feeds["mask"].shape == x.shape
        return {"y": np.repeat(2 * x[:, :, None], 5, axis=2), "total": x.sum(axis=1)}


def feeds_of(batch: int, length: int, kept: int | None = None) -> dict[str, np.ndarray]:
    x = np.arange(1.0, 1 + batch * length).reshape(batch, length)
    mask = np.zeros((batch, length))
    mask[:, : length if kept is None else kept] = 1
    return {"x": x * mask, "mask": mask, "bias": np.zeros(5)}


def test_the_first_sizes_come_first_and_every_combination_once() -> None:
    assert [(c["batch"], c["length"]) for c in CHOICES] == [(2, 8), (2, 3), (4, 8), (4, 3)]


def test_axes_are_recognized_by_how_they_change() -> None:
    found = sizes_of()
    assert found.inputs == {
        "x": ("batch", "length"),
        "mask": ("batch", "length"),
        "bias": (5,),
    }
    assert found.outputs == {"y": ("batch", "length", 5), "total": ("batch",)}
    halves = Sizes.of(CHOICES[:2], {}, {"y": [(4,), (2,)]})
    assert halves.outputs == {"y": ("",)}


def test_they_are_kept_as_json() -> None:
    found = replace(sizes_of(), mask="mask")
    assert Sizes.from_json(found.as_json()) == found


@given(batch=st.integers(1, 4), length=st.integers(1, 8))
def test_every_size_runs_at_the_smallest_that_holds_it(batch: int, length: int) -> None:
    run = Doubling()
    feeds = feeds_of(batch, length)
    found = sizes_of().run(run, feeds)
    assert run.shapes == [(2 if batch <= 2 else 4, 3 if length <= 3 else 8)]
    assert np.array_equal(found["y"], np.repeat(2 * feeds["x"][:, :, None], 5, axis=2))
    assert np.array_equal(found["total"], feeds["x"].sum(axis=1))


@given(length=st.integers(1, 20), kept=st.integers(0, 8))
def test_what_the_mask_leaves_out_at_the_end_is_not_computed(length: int, kept: int) -> None:
    run = Doubling()
    kept = min(kept, length)
    feeds = feeds_of(2, length, kept)
    found = replace(sizes_of(), mask="mask").run(run, feeds)
    assert run.shapes == [(2, 3 if kept <= 3 else 8)]
    assert np.array_equal(found["y"], np.repeat(2 * feeds["x"][:, :, None], 5, axis=2))


def test_the_longest_row_of_a_mask_counts() -> None:
    run = Doubling()
    feeds = feeds_of(2, 8, 2)
    feeds["mask"][1, 4] = 1
    replace(sizes_of(), mask="mask").run(run, feeds)
    assert run.shapes == [(2, 8)]


def test_a_size_that_nothing_holds_is_told_with_what_there_is() -> None:
    with pytest.raises(UnusableInput, match=r"batch=5, length=8, .* batch=2, length=8; batch"):
        sizes_of().run(Doubling(), feeds_of(5, 8))
    with pytest.raises(UnusableInput, match="Sizes of length must be met exactly"):
        sizes_of(("batch",)).run(Doubling(), feeds_of(2, 7))


@pytest.mark.parametrize(
    ("feeds", "part"),
    [
        ({**feeds_of(2, 8), "mask": np.ones((2, 3))}, "Another input has length = 8"),
        ({**feeds_of(2, 8), "bias": np.ones(6)}, r"must be \[5\]; found \[6\]"),
        ({**feeds_of(2, 8), "x": np.ones(8)}, r"must be \[batch, length\]; found \[8\]"),
        ({**feeds_of(2, 8), "x": np.ones((2, 0))}, r"found \[2, 0\]"),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_refused(
    feeds: dict[str, np.ndarray], part: str
) -> None:
    with pytest.raises(UnusableInput, match=part):
        sizes_of().run(Doubling(), feeds)


def test_arrays_are_cut_and_padded_at_the_end() -> None:
    values = np.arange(6).reshape(2, 3)
    assert fit(values, ("a", "b"), {"a": 1, "b": 5}).tolist() == [[0, 1, 2, 0, 0]]
    assert fit(values, (2, "b"), {"a": 1, "b": 2}).tolist() == [[0, 1], [3, 4]]
