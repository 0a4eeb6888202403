from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.targets.kernels.pen import Pen
from tilewright.targets.lower.program import (
    ALIGNMENT,
    Call,
    Pool,
    Program,
    Ref,
    plan_arena,
)
from tilewright.targets.lower.window import Buffer, compact

ITEMSIZE = {"float32": 4, "int64": 8, "bool": 1}


@dataclass(frozen=True)
class Stub:
    """A kernel of so many float32 arguments that nobody runs."""

    count: int
    name = "stub"

    def kinds(self) -> tuple[str, ...]:
        return ("float32",) * self.count

    def write(self, pen: Pen) -> None:
        raise AssertionError("nothing compiles in these tests")


def call(*buffers: Buffer) -> Call:
    return Call(Stub(len(buffers)), tuple(Ref(b) for b in buffers), ())


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Return programs whose steps read and write random buffers of random sizes."""
    program = Program()
    dtypes = st.sampled_from(sorted(ITEMSIZE))
    buffers = [
        program.buffer("t", draw(dtypes), draw(st.integers(0, 400)))
        for _ in range(draw(st.integers(1, 12)))
    ]
    chosen = st.lists(st.sampled_from(buffers), min_size=1, max_size=3)
    program.steps.extend(call(*draw(chosen)) for _ in range(draw(st.integers(0, 10))))
    for number, buffer in enumerate(draw(st.lists(st.sampled_from(buffers), max_size=2))):
        program.inputs[f"in{number}"] = compact(buffer, (buffer.elements,))
    for number, buffer in enumerate(draw(st.lists(st.sampled_from(buffers), max_size=2))):
        program.outputs[f"out{number}"] = compact(buffer, (buffer.elements,))
    return program


def lives(program: Program) -> dict[Buffer, set[int]]:
    """Return the moments of each buffer: 0 is the feeding, the last one is the fetching."""
    moments: dict[Buffer, list[int]] = {}
    for window in program.inputs.values():
        moments.setdefault(window.buffer, []).append(0)
    for when, step in enumerate(program.steps, start=1):
        assert isinstance(step, Call)
        for ref in step.refs:
            moments.setdefault(ref.buffer, []).append(when)
    for window in program.outputs.values():
        moments.setdefault(window.buffer, []).append(len(program.steps) + 1)
    return {b: set(range(min(m), max(m) + 1)) for b, m in moments.items()}


@settings(deadline=None, max_examples=200)
@given(programs())
def test_buffers_that_live_at_the_same_time_never_share_bytes(program: Program) -> None:
    offsets, size = plan_arena(program)
    alive = lives(program)
    assert set(offsets) == set(alive)
    spans = {b: range(at, at + b.elements * ITEMSIZE[b.dtype]) for b, at in offsets.items()}
    for one, span in spans.items():
        assert span.start % ALIGNMENT == 0
        assert span.stop <= size
        for other, there in spans.items():
            if one is not other and alive[one] & alive[other]:
                assert span.stop <= there.start or there.stop <= span.start


def test_a_chain_of_equal_buffers_needs_memory_for_two() -> None:
    program = Program()
    buffers = [program.buffer("t", "float32", 1024) for _ in range(10)]
    program.steps.extend(call(a, b) for a, b in pairwise(buffers))
    _, size = plan_arena(program)
    assert size == 2 * (4096 + ALIGNMENT)


def test_inputs_and_outputs_live_from_the_first_step_to_the_last() -> None:
    program = Program()
    x, t, y = (program.buffer(name, "float32", 16) for name in "xty")
    program.inputs["x"] = compact(x, (16,))
    program.steps.extend([call(x, t), call(t, y)])
    program.outputs["x"] = program.inputs["x"]
    program.outputs["y"] = compact(y, (16,))
    offsets, _ = plan_arena(program)
    assert len({offsets[x], offsets[t], offsets[y]}) == 3


def test_constants_start_at_cache_lines_and_do_not_live_in_the_arena() -> None:
    program = Program()
    first = program.constant("w", np.zeros((3, 3), np.float32)).buffer
    second = program.constant("v", np.zeros(5, np.float32)).buffer
    pool = Pool()
    assert pool.take(program) == {first: 0, second: 16}
    assert sum(piece.size for piece in pool.pieces("weights")) == 32
    program.steps.append(call(first))
    assert plan_arena(program) == ({}, 0)


def test_constants_that_programs_have_in_common_are_kept_once() -> None:
    pool = Pool()
    places = []
    for extra in (1.0, 2.0):
        program = Program()
        own = program.constant("own", np.full(3, extra, np.float32)).buffer
        common = program.constant("common", np.arange(40, dtype=np.float32)).buffer
        found = pool.take(program)
        places.append((found[own], found[common]))
        assert not program.constants
    assert places == [(0, 16), (64, 16)]
    flat = np.concatenate(list(pool.pieces("weights")))
    assert flat.size == 80
    assert np.array_equal(flat[16:56], np.arange(40))
    assert flat[0] == 1.0
    assert flat[64] == 2.0
