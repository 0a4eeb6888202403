"""Embedding lookups and resizing, against onnxruntime."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import normal, small_model
from tests.targets.builds import EXACT, agree, every_isa, graph_of, islands, normal_feeds
from tilewright import oracle
from tilewright.targets.lower.resize import resize_table


@every_isa
@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_ids_of_any_shape_find_their_rows_and_negative_ones_count_from_the_end(
    isa: str, kind: str
) -> None:
    graph = graph_of(
        f"g ({kind}[2,5] ids, {kind} one) => (float[2,5,19] y, float[19] z, float[2,5] s)"
        " { y = Gather(table, ids) z = Gather(table, one) s = Gather(flat, ids) }",
        table=normal(11, 19),
        flat=normal(11),
    )
    ids = np.array([[0, 10, -1, -11, 3], [4, 4, -5, 7, 9]], kind)
    made = agree(graph, {"ids": ids, "one": np.array(-2, kind)}, isa, within=EXACT)
    assert islands(made) == []


def test_gathers_of_every_kind_agree() -> None:
    graph = graph_of(
        "g (float[4,6,5] x, int64[3] ids, int64[4,6] n) => (float[6,5] a, float[4,5] b,"
        " float[4,3,5] c, float[4,6,3] d, float[2,2,6,5] e, float[4,2,5] f, int64[3,6] h,"
        " float[3,6,5] i, float[4,3,5] j)"
        " { a = Gather <axis = 0> (x, one) b = Gather <axis = 1> (x, last)"
        " c = Gather <axis = 1> (x, even) d = Gather <axis = 2> (x, ids)"
        " e = Gather (x, square) f = Gather <axis = 1> (x, back) h = Gather (n, ids)"
        " i = Gather (x, ids) j = Gather <axis = 1> (x, uneven) }",
        one=np.array(1),
        last=np.array(-1),
        even=np.array([0, 2, 4]),
        square=np.array([[0, 3], [2, -1]]),
        back=np.array([4, 1]),
        uneven=np.array([0, 1, 5]),
    )
    feeds = {
        "x": normal(4, 6, 5),
        "ids": np.array([2, -3, 0]),
        "n": np.arange(24).reshape(4, 6),
    }
    agree(graph, feeds, within=EXACT)


NEAREST = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]
COORDINATES = ["asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel"]


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize("how", COORDINATES)
def test_the_nearest_pixel_is_onnxruntimes_for_every_small_size(
    how: str, rounding: str
) -> None:
    """Of 7 pixels made 2, the second is 3.5: a tie, but its float32 is a little less."""
    attrs = {"coordinate_transformation_mode": how, "nearest_mode": rounding}
    written = ", ".join(f'{name} = "{value}"' for name, value in attrs.items())
    model = small_model(
        "g (float[1,1,1,N] x, int64[4] sizes) => (float[1,1,1,M] y)"
        f" {{ y = Resize <{written}> (x, , , sizes) }}",
        17,
    )
    running = oracle.session(model)
    for extent, out in itertools.product(range(1, 10), range(1, 16)):
        x = np.arange(extent, dtype=np.float32).reshape(1, 1, 1, extent)
        feeds = {"x": x, "sizes": np.array([1, 1, 1, out])}
        wanted = oracle.outputs_of(running, feeds)["y"].reshape(-1)
        places, shares = resize_table(attrs, np.float32(out / extent), extent, out)
        np.testing.assert_array_equal(places[:, 0], wanted, f"{extent} -> {out}")
        assert (shares == 1).all()


@every_isa
@settings(deadline=None, max_examples=6)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    out=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    mode=st.sampled_from(["nearest", "linear"]),
    how=st.sampled_from(COORDINATES),
    rounding=st.sampled_from(NEAREST),
)
def test_resizing_to_any_size_agrees(
    isa: str,
    size: tuple[int, int],
    out: tuple[int, int],
    mode: str,
    how: str,
    rounding: str,
) -> None:
    graph = graph_of(
        f"g (float[2,3,{size[0]},{size[1]}] x) => (float[2,3,{out[0]},{out[1]}] y)"
        f' {{ y = Resize <mode = "{mode}", coordinate_transformation_mode = "{how}",'
        f' nearest_mode = "{rounding}"> (x, , , sizes) }}',
        sizes=np.array([2, 3, *out]),
    )
    agree(graph, normal_feeds(graph), isa)


@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 2.6), (0.7, 0.5)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_by_scales_agrees(mode: str, scales: tuple[float, float]) -> None:
    graph = graph_of(
        f"g (float[1,2,7,5] x) => (float[1,2,{int(7 * scales[0])},{int(5 * scales[1])}] y)"
        f' {{ y = Resize <mode = "{mode}"> (x, , scales) }}',
        scales=np.array([1.0, 1.0, *scales], np.float32),
    )
    agree(graph, normal_feeds(graph))


def test_what_resizes_channels_or_by_cubic_runs_in_onnxruntime() -> None:
    graph = graph_of(
        "g (float[1,2,7,5] x) => (float[1,4,7,5] y, float[1,2,14,10] z)"
        ' { y = Resize (x, , , sizes) z = Resize <mode = "cubic"> (x, , scales) }',
        sizes=np.array([1, 4, 7, 5]),
        scales=np.array([1.0, 1.0, 2.0, 2.0], np.float32),
    )
    made = agree(graph, normal_feeds(graph))
    assert len(made.islands) == 2


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scale", [2.0, 0.75, 1.5])
def test_a_resize_of_opset_10_has_its_own_places(mode: str, scale: float) -> None:
    out = int(8 * scale)
    graph = graph_of(
        f"g (float[1,2,8,8] x) => (float[1,2,{out},{out}] y)"
        f' {{ y = Resize <mode = "{mode}"> (x, scales) }}',
        opset=10,
        scales=np.array([1, 1, scale, scale], np.float32),
    )
    assert islands(agree(graph, normal_feeds(graph))) == []


def test_a_resize_may_name_its_axes() -> None:
    graph = graph_of(
        "g (float[1,2,4,4] x) => (float[1,2,8,8] y, float[1,2,7,9] z)"
        ' { y = Resize <mode = "linear", axes = [2, 3]> (x, , scales)'
        ' z = Resize <mode = "linear", axes = [-2, -1]> (x, , , sizes) }',
        opset=18,
        scales=np.array([2, 2], np.float32),
        sizes=np.array([7, 9]),
    )
    assert islands(agree(graph, normal_feeds(graph))) == []
