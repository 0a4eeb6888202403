import numpy as np

from tests.small_models import normal, small_graph
from tilewright.coupling import Couplings
from tilewright.graph import Graph
from tilewright.layers import linear_layers
from tilewright.plan import channels_of, shares_of
from tilewright.removed import Group, columns_of, dimensions_read, removed


def joined() -> Graph:
    """Return two convolutions, the second of which reads what the first reads and writes."""
    return small_graph(
        """g (float[1,3,5,5] x) => (float[1,2,5,5] y) {
            a = Conv(x, first)  b = Conv(a, second)
            c = Concat <axis = 1> (a, b)  y = Conv <pads = [1, 1, 1, 1]> (c, third)
        }""",
        first=normal(8, 3, 1, 1),
        second=normal(4, 8, 1, 1),
        third=normal(2, 12, 3, 3),
    )


def test_what_was_removed_is_seen_from_outside() -> None:
    before = joined()
    couplings = Couplings(before)
    first, second, third = linear_layers(before)
    eight, four = dimensions_read(couplings, third)
    after = couplings.select({eight: [0, 1, 2, 5, 6, 7], four: [1, 2]})
    found = removed(before, after)
    assert found.groups == (
        Group((first.name,), (second.name, third.name), 8, 6),
        Group((second.name,), (third.name,), 4, 2),
    )
    assert found.shares == {second.name: (0.25,), third.name: (0.25, 0.5)}
    assert str(found.groups[1]) == f"{second.name} -> {third.name}: 4 -> 2"


def test_nothing_is_removed_by_other_weights_of_the_same_shapes() -> None:
    before = joined()
    after = before.edit()
    for layer in linear_layers(after):
        layer.replace(2 * layer.matrix())
    assert removed(before, after).groups == ()


def test_a_weight_that_is_stored_in_another_shape_lost_nothing() -> None:
    before = joined()
    after = before.edit()
    _, second, _ = linear_layers(after)
    second.weight.values = normal(2, 8, 1, 1)
    assert removed(before, after).groups == ()


def test_columns_that_meet_an_entry_are_those_of_its_taps() -> None:
    graph = joined()
    couplings = Couplings(graph)
    *_, third = linear_layers(graph)
    eight, four = dimensions_read(couplings, third)
    np.testing.assert_array_equal(
        columns_of(couplings, third, eight), np.arange(72).reshape(8, 9)
    )
    np.testing.assert_array_equal(
        columns_of(couplings, third, four), np.arange(72, 108).reshape(4, 9)
    )


def test_a_plan_keeps_one_share_a_dimension() -> None:
    assert (channels_of([0.25]), channels_of([1 / 3, 0])) == (0.25, "0.333333|0")
    for shares in ((0.25,), (0.5, 0.0, 0.125)):
        assert shares_of(channels_of(shares)) == shares
