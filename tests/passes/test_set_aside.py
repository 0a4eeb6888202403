"""Weights set aside: the same when they come back, and refused where there is no room."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.small_models import normal
from tilewright.errors import UnusableInput
from tilewright.passes.prune.set_aside import Aside


def test_what_is_read_is_what_was_set_aside() -> None:
    first = {"w": normal(3, 5).T, "b": normal(7).astype(np.float64)}
    second = {"w": normal(2, 2, 2), "none": np.zeros((0, 4), np.float32)}
    aside = Aside([("first", first), ("second", second), ("third", {})])
    for _ in range(2):  # reading takes nothing away
        for key, constants in (("second", second), ("first", first), ("third", {})):
            found = aside.read(key)
            assert list(found) == list(constants)
            for name, values in constants.items():
                assert found[name].dtype == values.dtype
                np.testing.assert_array_equal(found[name], values)


def test_nothing_at_all_may_be_set_aside() -> None:
    assert Aside([("only", {})]).read("only") == {}


def test_without_room_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", 0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
        with pytest.raises(UnusableInput, match=r"has no room for weights.*Set TMPDIR"):
            Aside([("key", {"w": normal(4, 4)})])
